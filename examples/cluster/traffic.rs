//! Traffic between every pair of pods.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use flannel_examples::{Progress, TextTable};
use flannel_testing::{PingError, PingOptions, ping, throughput};

use crate::cluster::{Cluster, Node};

/// Pings per pair; the table shows the median, because the first one also resolves neighbours.
const PINGS: usize = 5;

/// Duration of the throughput measurement.
const STREAM: Duration = Duration::from_secs(2);

/// Sends traffic between all pairs, prints the results, and returns whether all pings were answered.
pub(crate) async fn show(cluster: &Cluster) -> Result<bool, Box<dyn Error>> {
    let nodes = &cluster.nodes;
    let pairs = nodes.len() * (nodes.len() - 1);
    let step = Progress::begin("pings");
    let heading = (1..=nodes.len()).map(|number| number.to_string());
    let mut table = TextTable::new(std::iter::once("from, to".to_owned()).chain(heading)).right_aligned();
    let mut failures = Vec::new();
    for from in nodes {
        let mut row = vec![from.name.clone()];
        for to in nodes {
            row.push(match round_trip(from, to).await? {
                None => "-".to_owned(),
                Some(Ok(time)) => time.as_micros().to_string(),
                Some(Err(error)) => {
                    failures.push(format!(
                        "{} to {}: {}",
                        from.pod.name,
                        to.pod.name,
                        flannel_core::chain(&error)
                    ));
                    "lost".to_owned()
                }
            });
        }
        table.row(row);
    }
    step.done(&format!("{} of {pairs} pairs of pods replied", pairs - failures.len()));
    println!("\nround-trip time from pod to pod, microseconds, median of {PINGS} pings");
    table.print();
    failures.iter().for_each(|failure| println!("  lost: {failure}"));
    if failures.is_empty() {
        show_throughput(nodes).await?;
    }
    println!("{} of {pairs} pairs of pods can communicate", pairs - failures.len());
    Ok(failures.is_empty())
}

/// Returns the median round-trip time between two pods; `None` from a pod to itself.
async fn round_trip(from: &Node, to: &Node) -> Result<Option<Result<Duration, PingError>>, Box<dyn Error>> {
    let Some(address) = address(to).filter(|_| from.name != to.name) else {
        return Ok(None);
    };
    let namespace = from.pod.namespace.clone();
    let pings = move || {
        let mut times = (0..PINGS)
            .map(|_| ping(&namespace, address, &PingOptions::default()))
            .collect::<Result<Vec<_>, _>>()?;
        times.sort_unstable();
        Ok(times[PINGS / 2])
    };
    // On a thread, so that the networks can make progress.
    Ok(Some(tokio::task::spawn_blocking(pings).await?))
}

async fn show_throughput(nodes: &[Node]) -> Result<(), Box<dyn Error>> {
    let [from, to, ..] = nodes else { return Ok(()) };
    let Some(address) = address(to) else { return Ok(()) };
    let (client, server) = (from.pod.namespace.clone(), to.pod.namespace.clone());
    let stream = move || throughput(&client, &server, address, STREAM, 1);
    let result = tokio::task::spawn_blocking(stream).await??;
    println!("one TCP stream from {} to {}: {result}\n", from.pod.name, to.pod.name);
    Ok(())
}

fn address(node: &Node) -> Option<IpAddr> {
    node.pod.addresses.first().copied()
}
