//! Kills a process before each of its writes and starts it again. Three tables depend on each other as
//! those of a tunnel do, and a script changes the peers meanwhile; it runs once per write, and the process dies right
//! before that write.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use flannel_core::reconcile::{Change, Reconciler, Table, TableSync, pass};
use flannel_core::{BoxError, SyncReport};
use flannel_testing::FakeTable;

/// The peers: the number of each subnet with that of its device and of the device's address.
type Peers = BTreeMap<u8, (u8, u8)>;

/// The tables of a host's kernel, which outlive processes.
#[derive(Clone, Default)]
struct Kernel {
    /// The address of a device.
    entries: FakeTable<u8, u8>,
    /// The device of a subnet's address.
    neighbours: FakeTable<u8, u8>,
    routes: FakeTable<u8, u8>,
}

impl Kernel {
    fn holds(&self, peers: &Peers) -> bool {
        let one = |pairs: Vec<(u8, u8)>| -> BTreeMap<u8, Vec<u8>> {
            pairs.into_iter().map(|(key, value)| (key, vec![value])).collect()
        };
        self.entries.objects() == one(peers.values().copied().collect())
            && self.neighbours.objects() == one(peers.iter().map(|(n, (device, _))| (*n, *device)).collect())
            && self.routes.objects() == one(peers.keys().map(|n| (*n, *n)).collect())
    }

    /// Returns whether packets to a peer arrive.
    fn reaches(&self, n: u8, (device, place): (u8, u8)) -> bool {
        self.routes.objects().get(&n) == Some(&vec![n])
            && self.neighbours.objects().get(&n) == Some(&vec![device])
            && self.entries.objects().get(&device) == Some(&vec![place])
    }

    /// No route may lead to an address whose device, or the address of that device, is unknown.
    fn check_that_no_route_leads_nowhere(&self) {
        let (neighbours, entries) = (self.neighbours.objects(), self.entries.objects());
        for n in self.routes.objects().keys() {
            let device = neighbours.get(n).map(|devices| devices[0]);
            let place = device.and_then(|device| entries.get(&device));
            assert!(
                place.is_some(),
                "route {n} must lead to a device with an address, got device {device:?}"
            );
        }
    }

    fn removed(&self) -> usize {
        let drops = |writes: Vec<Change<u8, u8>>| {
            writes.iter().filter(|change| matches!(change, Change::Drop { .. })).count()
        };
        [&self.entries, &self.neighbours, &self.routes].map(|table| drops(table.take_writes())).iter().sum()
    }
}

/// A table of a process that dies after a number of writes to all its tables.
struct CrashingTable {
    table: FakeTable<u8, u8>,
    writes_left: Rc<Cell<usize>>,
}

impl Table for CrashingTable {
    type Key = u8;
    type Value = u8;

    fn name(key: &u8, value: &u8) -> String {
        FakeTable::name(key, value)
    }

    fn read(&mut self) -> Result<Vec<(u8, u8)>, BoxError> {
        self.table.read()
    }

    fn apply(&mut self, changes: &[Change<u8, u8>]) -> Vec<Result<(), BoxError>> {
        let mut one = |change: &Change<u8, u8>| {
            let left = self.writes_left.get().checked_sub(1).ok_or("the process is dead")?;
            self.writes_left.set(left);
            self.table.apply(std::slice::from_ref(change)).remove(0)
        };
        changes.iter().map(&mut one).collect()
    }
}

struct Process {
    entries: Reconciler<CrashingTable>,
    neighbours: Reconciler<CrashingTable>,
    routes: Reconciler<CrashingTable>,
}

impl Process {
    fn start(kernel: &Kernel, writes_left: &Rc<Cell<usize>>) -> Self {
        let open = |table: &FakeTable<u8, u8>| {
            Reconciler::new(CrashingTable { table: table.clone(), writes_left: Rc::clone(writes_left) })
        };
        Self {
            entries: open(&kernel.entries),
            neighbours: open(&kernel.neighbours),
            routes: open(&kernel.routes),
        }
    }

    fn pass(&mut self, peers: &Peers, complete: bool, now: Instant) -> SyncReport {
        self.entries.tracker.set_all_desired(peers.values().copied().collect());
        self.neighbours.tracker.set_all_desired(peers.iter().map(|(n, (device, _))| (*n, *device)).collect());
        self.routes.tracker.set_all_desired(peers.keys().map(|n| (*n, *n)).collect());
        let mut layers: [(&str, &mut dyn TableSync); 3] = [
            ("the entries", &mut self.entries),
            ("the neighbours", &mut self.neighbours),
            ("the routes", &mut self.routes),
        ];
        pass(&mut layers, complete, now)
    }
}

/// What the process sees: each step is a sync with these peers, known completely or not.
fn script() -> Vec<(Peers, bool)> {
    let stays = (1, (11, 101));
    vec![
        ([stays].into(), false),
        ([stays, (2, (12, 102)), (3, (13, 103))].into(), true),
        // One joins.
        ([stays, (2, (12, 102)), (3, (13, 103)), (4, (14, 104))].into(), true),
        // One gets a new device, one moves.
        ([stays, (2, (22, 102)), (3, (13, 113)), (4, (14, 104))].into(), true),
        // One leaves, one returns with another's address.
        ([stays, (3, (13, 113)), (5, (25, 102))].into(), true),
        // Two swap their subnets.
        ([stays, (3, (25, 102)), (5, (13, 113))].into(), true),
        ([stays].into(), true),
        // All join at once.
        ((1..=9).map(|n| (n, (10 + n, 100 + n))).collect(), true),
    ]
}

/// Runs until the writes are used up or the script ends; returns the step in which the process died, and the peers of
/// that step.
fn live(kernel: &Kernel, writes: usize) -> Option<(Peers, bool)> {
    let writes_left = Rc::new(Cell::new(writes));
    let mut process = Process::start(kernel, &writes_left);
    let mut now = Instant::now();
    for (peers, complete) in script() {
        let report = process.pass(&peers, complete, now);
        if !report.failed.is_empty() {
            return Some((peers, complete));
        }
        assert!(!complete || kernel.holds(&peers));
        now += Duration::from_secs(1);
    }
    None
}

#[test]
fn after_a_kill_at_any_write_the_next_process_converges_and_removes_nothing_early() {
    let mut deaths = 0;
    for writes in 0.. {
        let kernel = Kernel::default();
        let Some((peers, complete)) = live(&kernel, writes) else { break };
        deaths += 1;
        kernel.check_that_no_route_leads_nowhere();
        // The peer that never changes is reachable from its three writes on.
        assert!(
            writes < 3 || kernel.reaches(1, (11, 101)),
            "the unchanged peer must be reachable after a kill at write {writes}"
        );
        let _ = kernel.removed();

        // The next process sees one peer first, then all.
        let immortal = Rc::new(Cell::new(usize::MAX));
        let mut next = Process::start(&kernel, &immortal);
        let now = Instant::now();
        let before = [&kernel.entries, &kernel.neighbours, &kernel.routes].map(FakeTable::objects);
        next.pass(&peers.iter().take(1).map(|(n, peer)| (*n, *peer)).collect(), false, now);
        assert_eq!(
            kernel.removed(),
            0,
            "nothing must be removed with incomplete peers after a kill at write {writes}"
        );
        let after = [&kernel.entries, &kernel.neighbours, &kernel.routes].map(FakeTable::objects);
        assert!(writes < 3 || after == before, "correct objects must be kept after a kill at write {writes}");
        kernel.check_that_no_route_leads_nowhere();

        let report = next.pass(&peers, true, now);
        assert_eq!(report.failed, []);
        assert!(
            kernel.holds(&peers),
            "the kernel must match the peers after a kill at write {writes}, complete: {complete}"
        );
        assert!(kernel.reaches(1, (11, 101)));
        assert_eq!(next.pass(&peers, true, now), SyncReport::default(), "a further sync must do nothing");
    }
    assert!(deaths > 50, "{deaths} writes");
}
