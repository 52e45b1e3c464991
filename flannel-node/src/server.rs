//! Health, readiness, metrics and status over HTTP.
//!
//! [`HealthServer`] serves `/healthz`, `/readyz` and `/metrics` on a TCP port for all users. [`StatusSocket`] serves the
//! same, `/status` and `/summary` on a unix socket for root; [`client`](crate::client) reads it. Responses are put together
//! on request.

mod health;
mod http;
mod metrics;
mod readiness;
mod socket;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use health::HealthServer;
use http::{Request, Response};
pub use socket::StatusSocket;

use crate::status::StatusSource;

/// Where an agent serves health, metrics and status.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ObserveOptions {
    /// The address of the health port.
    pub health: Option<SocketAddr>,
    /// The path of the status socket.
    pub socket: Option<PathBuf>,
}

/// Serves what the options ask for, and never returns. Failures are logged; they don't matter to the traffic.
pub async fn serve(options: &ObserveOptions, source: StatusSource) -> Infallible {
    let health = async {
        match options.health {
            Some(address) => HealthServer::new(address, source.clone()).run().await,
            None => std::future::pending().await,
        }
    };
    let socket = async {
        match &options.socket {
            Some(path) => StatusSocket::new(path, source.clone()).run().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        never = health => never,
        never = socket => never,
    }
}

/// The paths that need no permission.
pub const PUBLIC_PATHS: &[&str] = &["/healthz", "/readyz", "/metrics"];

/// The paths that only root may read.
pub const PRIVATE_PATHS: &[&str] = &["/status", "/summary"];

/// Responds to a request for a public path.
fn public(request: &Request, source: &StatusSource) -> Option<Response> {
    Some(match request.path.as_str() {
        "/healthz" => Response::text(200, "flanneld is running"),
        "/readyz" => {
            let (is_ready, body) = readiness::readiness(&source.summary());
            Response::text(if is_ready { 200 } else { 503 }, body)
        }
        "/metrics" => Response::new(200, metrics::CONTENT_TYPE, metrics::metrics(&source.summary())),
        _ => return None,
    })
}

/// Responds to a request for any path.
fn private(request: &Request, source: &StatusSource) -> Option<Response> {
    let status = match request.path.as_str() {
        "/status" => source.status(),
        "/summary" => source.summary(),
        _ => return public(request, source),
    };
    Some(match serde_json::to_vec(&status) {
        Ok(json) => Response::new(200, "application/json", json),
        Err(error) => Response::text(500, error.to_string()),
    })
}
