//! What the daemon tells of itself to whoever asks.
//!
//! | where | what |
//! |---|---|
//! | `http` | answers requests, over TCP and over a unix socket, however many there are and however slow |
//! | `health` | the health port: `/healthz`, `/readyz`, `/metrics` |
//! | `socket` | the unix socket: the same and `/status`, `/summary`; for root alone |
//! | `report` | what is told: the network's status and what the daemon does beside it |
//! | `ready`, `metrics` | the same in other forms (pure) |
//! | `client` | asks a daemon over its socket |
//!
//! Nothing is put together unless it is asked for.

mod health;
mod http;
mod metrics;
mod readiness;
mod socket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::status::StatusSource;
use http::{Answer, Request};

/// What is served where.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ObserveOptions {
    /// The health port, if there is one.
    pub health: Option<SocketAddr>,
    /// The unix socket, if there is one.
    pub socket: Option<PathBuf>,
}

/// Serves for ever. What cannot be served is told, tried again, and no reason to end: the traffic matters more.
pub async fn serve(options: &ObserveOptions, sources: StatusSource) -> std::convert::Infallible {
    let sources = Arc::new(sources);
    let health = async {
        match options.health {
            Some(address) => health::serve(address, Arc::clone(&sources)).await,
            None => std::future::pending().await,
        }
    };
    let socket = async {
        match &options.socket {
            Some(path) => socket::serve(path, Arc::clone(&sources)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        never = health => never,
        never = socket => never,
    }
}

/// What everybody may know.
fn public(request: &Request, sources: &StatusSource) -> Option<Answer> {
    Some(match request.path.as_str() {
        "/healthz" => Answer::text(200, "flanneld is running"),
        "/readyz" => {
            let (is_ready, body) = readiness::readiness(&sources.summary());
            Answer::text(if is_ready { 200 } else { 503 }, body)
        }
        "/metrics" => Answer::of(200, metrics::CONTENT_TYPE, metrics::metrics(&sources.summary())),
        _ => return None,
    })
}

/// What is for whoever may administer the host.
fn private(request: &Request, sources: &StatusSource) -> Option<Answer> {
    let report = match request.path.as_str() {
        "/status" => sources.status(),
        "/summary" => sources.summary(),
        _ => return public(request, sources),
    };
    Some(match serde_json::to_vec(&report) {
        Ok(json) => Answer::of(200, "application/json", json),
        Err(error) => Answer::text(500, error.to_string()),
    })
}
