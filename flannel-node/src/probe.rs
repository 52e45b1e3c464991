//! Measures the paths to the other hosts, inside and outside of the tunnel: on demand, and as a mesh in the background.
//!
//! | part | what it does |
//! |---|---|
//! | `packet` | writes and reads questions and answers (pure) |
//! | `path` | decides what to ask next on one path: answers, losses, the path MTU (pure) |
//! | `verdict` | states in one line what the paths to a peer mean (pure) |
//! | `order` | decides whose turn it is, within a budget (pure) |
//! | `history` | remembers a peer from turn to turn (pure) |
//! | `site` | knows who is to be probed, from where |
//! | `wire` | sends and hears, and answers peers |
//! | `mesh` | probes in the background |

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

/// So many peers are probed at once, so that a network of thousands floods nobody.
const AT_ONCE: usize = 64;

/// The time between two questions on a path.
const PAUSE: Duration = Duration::from_millis(200);

/// What probes found of a peer.
#[derive(Clone, Debug, Serialize)]
pub struct ProbedPeer {
    /// Its subnets.
    #[serde(rename = "subnets")]
    pub subnet: SubnetKey,
    /// Its public addresses.
    #[serde(rename = "public_addresses")]
    pub public: PublicAddrs,
    /// What was found.
    #[serde(flatten)]
    pub probe: PeerProbe,
}

impl Site {
    /// Probes all peers once, with `count` small questions on each path and the path MTU; `port` is that of all
    /// responders.
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
            // First what was heard: see `mesh`.
            biased;
            never = wire.listen() => match never {},
            peers = probed => peers,
        }
    }
}
