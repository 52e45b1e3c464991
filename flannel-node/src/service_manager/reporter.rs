//! Status line and watchdog while the agent runs.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;

use super::{Notifier, log_failure, watchdog_interval};
use crate::status::{self, StatusSource};

/// How often the status line is compared with the status.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// Sends the service manager a status line whenever it changes, and resets the watchdog as long as the network's loop runs.
/// Never returns.
pub async fn report_status(notifier: &Notifier, source: StatusSource) -> Infallible {
    if !notifier.has_manager() {
        return std::future::pending().await;
    }
    let variable = |name| std::env::var_os(name);
    let watchdog =
        watchdog_interval(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref());
    let mut last_line = String::new();
    let mut was_sent = true;
    let mut next_reset = Instant::now();
    loop {
        let network = source.summary().network;
        let line = status::one_line(&network);
        let mut sent = None;
        if line != last_line {
            let status = notifier.status(&line);
            if status.is_ok() {
                last_line = line;
            }
            sent = Some(status);
        }
        if let Some(interval) = watchdog
            && Instant::now() >= next_reset
            && status::is_alive(&network)
        {
            next_reset = Instant::now() + interval;
            sent = Some(sent.unwrap_or(Ok(())).and(notifier.watchdog()));
        }
        // A manager that is gone is logged once.
        if let Some(sent) = sent
            && was_sent != sent.is_ok()
        {
            was_sent = sent.is_ok();
            log_failure(sent);
        }
        let pause = watchdog.map_or(STATUS_INTERVAL, |interval| (interval / 2).min(STATUS_INTERVAL));
        tokio::time::sleep(pause).await;
    }
}
