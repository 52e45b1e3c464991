//! The health port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::{error, info};

use super::http::{Request, Respond};
use crate::status::StatusSource;

/// How long after the port could not be had it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Serves the port for ever. That somebody else has it is told once, and tried again.
pub(super) async fn serve(address: SocketAddr, sources: Arc<StatusSource>) -> Infallible {
    let mut is_told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) if is_told => {}
            Err(reason) => {
                error!(
                    "Start healthz server error. listen tcp {address}: bind: {reason}; it is tried again, and \
                     traffic goes on"
                );
                is_told = true;
            }
        }
        sleep(TRY_AGAIN).await;
    };
    info!("Start healthz server on {address}");
    let respond: Arc<Respond> = Arc::new(move |request: &Request| super::public(request, &sources));
    super::http::serve(|| async { listener.accept().await.map(|(stream, _)| stream) }, respond).await
}
