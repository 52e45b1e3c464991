//! Measures the paths to the other hosts, inside and outside of the tunnel: on demand, and as a mesh in the background.
//!
//! | part | what it does |
//! |---|---|
//! | `packet` | encodes and decodes probes |
//! | `path` | decides the next probe on a path: losses, round trips, path MTU |
//! | `verdict` | judges a peer by its paths, in one line |
//! | `order` | schedules the peers within a budget |
//! | `history` | aggregates the probes of a peer |
//! | `site` | this host and its peers |
//! | `wire` | the sockets, and the responder |
//! | `mesh` | the background probes |
//! | `results` | their results, and their part of the status |

mod history;
mod mesh;
mod order;
mod packet;
mod path;
mod results;
mod site;
mod sys;
mod verdict;
mod wire;

use std::time::{Duration, Instant};

use flannel_core::{PeerProbe, PublicAddrs, SubnetKey};
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use serde::Serialize;

pub use history::History;
pub use mesh::{Mesh, MeshOptions};
pub use results::MeshResults;
pub use site::{ProbeSource, ProbeTarget, Site};
pub use verdict::{ProbeContext, judge, weight};

use site::Thoroughness;
use wire::ProbeSockets;

/// The maximum number of peers that are probed at once, so that a large network is not flooded.
const AT_ONCE: usize = 64;

/// The pause between two probes on a path.
const PAUSE: Duration = Duration::from_millis(200);

/// The result of probing a peer.
#[derive(Clone, Debug, Serialize)]
pub struct ProbedPeer {
    /// Its subnets.
    #[serde(rename = "subnets")]
    pub subnet: SubnetKey,
    /// Its public addresses.
    #[serde(rename = "public_addresses")]
    pub public: PublicAddrs,
    /// The verdict and the measurements.
    #[serde(flatten)]
    pub probe: PeerProbe,
}

impl Site {
    /// Probes all peers once: sends `count` small probes on each path, and measures the path MTU. `port` is the UDP port of
    /// all responders.
    pub async fn probe(&self, count: u32, port: u16) -> Vec<ProbedPeer> {
        let Self { own, peers } = self;
        let wire = ProbeSockets::open(own, port);
        let how = Thoroughness { enough: count, most: count, pause: PAUSE, sizes: true };
        let probed = stream::iter(peers).map(|peer| {
            let measured = join_all(own.plans(peer, how).into_iter().map(|plan| wire.measure(plan)));
            async {
                let mut history = History::new();
                history.add(measured.await, &own.context, Instant::now());
                ProbedPeer { subnet: peer.subnet, public: peer.public, probe: history.show(Instant::now()) }
            }
        });
        let probed = probed.buffered(AT_ONCE).collect::<Vec<_>>();
        tokio::select! {
            // Answers first, as in `mesh`.
            biased;
            never = wire.listen() => match never {},
            peers = probed => peers,
        }
    }
}
