//! The VXLAN backend of this project.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_benches::{ProcessMemory, median, processor_time};
use flannel_core::{
    Backend, Dirty, LeaseChange, Network, NetworkOptions, PeerSet, Shutdown, SubnetKey, SubnetRegistry,
    SyncReport, SyncRequest,
};
use flannel_netlink::{Monitor, Namespace, Notification};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager};

use crate::Measured;
use crate::peers::{self, attrs, lease, subnet};
use crate::site::{flush, lab, open};

/// The number of single changes.
const CHANGES: u32 = 21;

/// Measures the backend alone.
pub(crate) fn measure(size: u32) -> Measured {
    let lab = lab();
    let host = &lab.hosts[0].namespace;
    let mut peers = PeerSet::default();
    peers.extend((0..size).map(|n| LeaseChange::Put(Arc::new(lease(n, 0)))));
    peers.complete();
    let mut backend = open(host);
    let all = 3 * size as usize;

    let before = processor_time();
    let (report, first) = sync(&mut *backend, &peers, &Dirty::All);
    let first_cpu = processor_time() - before;
    assert_eq!(report.written, all);
    let memory = ProcessMemory::of("self");
    let change = median((0..CHANGES).map(|i| change(&mut *backend, &mut peers, i * (size / CHANGES))));
    drop(backend);

    let started = Instant::now();
    let mut backend = open(host);
    let (report, _) = sync(&mut *backend, &peers, &Dirty::All);
    let restart = started.elapsed().as_secs_f64();
    assert_eq!((report.written, report.removed), (0, 0), "a restart must write nothing");

    flush(host, size);
    let before = processor_time();
    let (report, repair) = sync(&mut *backend, &peers, &Dirty::All);
    let repair_cpu = processor_time() - before;
    assert_eq!((report.drifted, report.written), (all, all));
    [
        ("first start", first),
        ("first start CPU", first_cpu),
        ("one change", change),
        ("restart", restart),
        ("repair", repair),
        ("repair CPU", repair_cpu),
        ("resident", memory.resident),
        ("peak", memory.peak),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn sync(backend: &mut dyn Backend, peers: &PeerSet, dirty: &Dirty) -> (SyncReport, f64) {
    let now = Instant::now();
    let report = backend.sync(SyncRequest::new(peers, dirty, now));
    assert_eq!(report.failed, []);
    (report, now.elapsed().as_secs_f64())
}

/// Gives a peer a new device.
fn change(backend: &mut dyn Backend, peers: &mut PeerSet, n: u32) -> f64 {
    let changed = lease(n, 1);
    let dirty = Dirty::Some([changed.subnet].into());
    peers.apply(LeaseChange::Put(Arc::new(changed)));
    let (report, time) = sync(backend, peers, &dirty);
    assert_eq!((report.written, report.removed), (2, 1));
    time
}

/// Measures the whole network over a registry in memory, from a host that joins to the route to it.
pub(crate) fn measure_network(size: u32) -> Measured {
    let lab = lab();
    let host = lab.hosts[0].namespace.clone();
    let registry = MemoryRegistry::new();
    registry.set_config(peers::CONFIG);
    for n in 0..size {
        registry.put_raw(&SubnetKey::from(subnet(n)).to_string(), attrs(n, 0).to_record().as_bytes());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let external = external_interface(&host, "eth0").unwrap();
    let manager = RegistryLeaseManager::new(registry.clone());
    let options = NetworkOptions::new(manager, OpenVxlan::new(host.clone()), external);
    let (network, task) = Network::new(options);
    // One thread for the network, as in the daemon, and one for the bench.
    let observer = std::thread::spawn(move || observe(network, &registry, &host, size));
    runtime.block_on(task.run()).unwrap();
    [("event to kernel".to_owned(), observer.join().unwrap())].into()
}

/// Makes hosts join once the network has settled, and returns how long each took to be reachable.
fn observe(network: Network, registry: &MemoryRegistry, host: &Namespace, size: u32) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        network.ready().await.unwrap();
        settle(&network).await;
        let mut times = Vec::new();
        for n in (size..).take(CHANGES as usize) {
            let mut monitor = Monitor::open_in(host).unwrap();
            let subnet = subnet(n);
            let started = Instant::now();
            registry.create(subnet.into(), &attrs(n, 0), Duration::from_secs(3600)).await.unwrap();
            wait_for_route(&mut monitor, subnet.network()).await;
            times.push(started.elapsed().as_secs_f64());
            drop(monitor);
            settle(&network).await;
        }
        network.shutdown(Shutdown::Keep).await;
        median(times)
    })
}

/// Waits until the network has made no pass for a while.
async fn settle(network: &Network) {
    loop {
        let passes = network.summary().kernel.passes;
        tokio::time::sleep(Duration::from_millis(50)).await;
        if network.summary().kernel.passes == passes {
            return;
        }
    }
}

async fn wait_for_route(monitor: &mut Monitor, network: Ipv4Addr) {
    loop {
        if let Notification::Route { route, removed: false } = monitor.next().await.unwrap()
            && route.destination.network() == network
        {
            return;
        }
    }
}
