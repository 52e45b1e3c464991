//! Ten senders that flood a port of the second host from addresses that no peer has.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flannel_testing::throughput;

use crate::paths::{Path, Site};

/// The number of senders.
const STRANGERS: u8 = 10;

/// The datagrams of each sender between two pauses, some 200,000 per second in total. Without a pause they would use up
/// the processors that both hosts share.
const BURST: usize = 32;
const PAUSE: Duration = Duration::from_micros(1500);

/// Measures a stream between the hosts in Gbit/s: without a flood, beside a flood to a socket that is never read, which
/// shows the cost of the flood itself, and beside a flood to the backend's port.
pub(crate) fn measure(site: &Site, path: &Path, time: Duration) -> [f64; 3] {
    let [from, to] = [&site.hosts[0], &site.hosts[1]];
    let stream = || throughput(from, to, path.to, time, 1).unwrap().bits_per_second() / 1e9;
    let _idle = to.run(|| UdpSocket::bind("0.0.0.0:9999")).unwrap().unwrap();
    let quiet = stream();
    [quiet, flooded(site, 9999, stream), flooded(site, 8285, stream)]
}

fn flooded(site: &Site, port: u16, measure: impl FnOnce() -> f64) -> f64 {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for stranger in 0..STRANGERS {
            let from = SocketAddr::from(([192, 168, 64, 100 + stranger], 0));
            let socket = site.strangers.run(|| UdpSocket::bind(from)).unwrap().unwrap();
            let stop = &stop;
            scope.spawn(move || {
                // The beginning of an IPv4 packet, as in a forged one.
                let packet = [0x45; 64];
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..BURST {
                        // A datagram that is not sent does not matter.
                        let _ = socket.send_to(&packet, SocketAddr::from(([192, 168, 64, 2], port)));
                    }
                    thread::sleep(PAUSE);
                }
            });
        }
        let measured = measure();
        stop.store(true, Ordering::Relaxed);
        measured
    })
}
