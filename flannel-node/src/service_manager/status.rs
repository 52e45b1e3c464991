//! What the service manager is told while the network lives.

use std::convert::Infallible;

use tokio::time::Instant;
use tracing::warn;

use super::{Notifier, watchdog};
use crate::status::{self, StatusSource};

/// Tells the service manager how the network is, whenever that changes, and that the daemon lives, as long as the loop of
/// the network does.
pub async fn report(notifier: &Notifier, sources: StatusSource) -> Infallible {
    if !notifier.is_there() {
        return std::future::pending().await;
    }
    let variable = |name| std::env::var_os(name);
    let watchdog = watchdog(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref());
    let mut told = String::new();
    let mut is_told = true;
    let mut alive_at = Instant::now();
    loop {
        let network = sources.summary().network;
        let line = status::in_one_line(&network);
        let mut sent = None;
        if line != told {
            let status = notifier.status(&line);
            if status.is_ok() {
                told = line;
            }
            sent = Some(status);
        }
        if let Some(every) = watchdog
            && Instant::now() >= alive_at
            && status::is_alive(&network)
        {
            alive_at = Instant::now() + every;
            sent = Some(sent.unwrap_or(Ok(())).and(notifier.alive()));
        }
        // Once, however long it lasts: the manager may have gone.
        if let Some(sent) = sent
            && is_told != sent.is_ok()
        {
            is_told = sent.is_ok();
            notified(sent);
        }
        let pause = watchdog.map_or(status::LINE_EVERY, |every| (every / 2).min(status::LINE_EVERY));
        tokio::time::sleep(pause).await;
    }
}

/// Warns if it could not be told.
pub fn notified(result: std::io::Result<()>) {
    if let Err(error) = result {
        warn!("The service manager cannot be told: {error}");
    }
}
