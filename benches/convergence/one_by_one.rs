//! As upstream flannel writes: one request at a time, each waiting for its answer, all metrics 0.

use std::time::Instant;

use flannel_netlink::{FdbEntry, Neighbour, Netlink, Route, WriteRequest};

use crate::Measured;
use crate::peers::{Objects, objects};
use crate::site::{device, lab};

pub(crate) fn measure(size: u32) -> Measured {
    let lab = lab();
    let host = &lab.hosts[0].namespace;
    let index = device(host);
    let mut netlink = Netlink::open_in(host).unwrap();
    let mut reach = |n: u32, generation: u8| {
        let Objects { subnet, mac, public } = objects(n, generation);
        let gateway = subnet.network().into();
        for write in [
            WriteRequest::PutNeighbour(Neighbour::permanent(index, gateway, mac)),
            WriteRequest::PutFdb(FdbEntry::permanent(index, mac, public)),
            WriteRequest::PutRoute(Route::onlink(subnet.into(), gateway, index)),
        ] {
            netlink.apply(&[write]).remove(0).unwrap();
        }
    };
    let started = Instant::now();
    (0..size).for_each(|n| reach(n, 0));
    let first = started.elapsed().as_secs_f64();
    let started = Instant::now();
    reach(size / 2, 1);
    let change = started.elapsed().as_secs_f64();
    [("first start".to_owned(), first), ("one change".to_owned(), change)].into()
}
