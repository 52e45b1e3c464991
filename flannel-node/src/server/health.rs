//! The health port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::{error, info};

use super::http::{Handler, Request};
use crate::status::StatusSource;

/// The pause between attempts to bind the port.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// Serves health, readiness and metrics on a TCP port.
#[derive(Debug)]
pub struct HealthServer {
    address: SocketAddr,
    source: StatusSource,
}

impl HealthServer {
    /// Prepares a server for this address.
    #[must_use]
    pub fn new(address: SocketAddr, source: StatusSource) -> Self {
        Self { address, source }
    }

    /// Serves, and never returns. A port in use is logged once and tried again.
    pub async fn run(self) -> Infallible {
        let Self { address, source } = self;
        let mut is_logged = false;
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) if is_logged => {}
                Err(reason) => {
                    error!("Start healthz server error. listen tcp {address}: bind: {reason}; retrying");
                    is_logged = true;
                }
            }
            sleep(BIND_RETRY).await;
        };
        info!("Start healthz server on {address}");
        let handler: Handler = Box::new(move |request: &Request| super::public(request, &source));
        super::http::serve(|| async { listener.accept().await.map(|(stream, _)| stream) }, handler).await
    }
}
