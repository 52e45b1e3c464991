//! A simulated host: its kernel, its link, and the process that runs its network.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use flannel_core::{
    ExternalInterface, Network, NetworkError, NetworkOptions, PublicAddrs, Shutdown, SubnetKey,
};
use flannel_netlink::Mac;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::SimStore;
use super::backend::OpenSim;
use super::checked_manager::CheckedManager;
use super::checker::InvariantChecker;
use super::kernel::Kernel;
use super::link::StoreLink;

pub(super) struct Host {
    pub(super) number: usize,
    pub(super) public: Ipv4Addr,
    pub(super) link: StoreLink,
    pub(super) kernel: Kernel,
    /// The subnet that the process believes to hold.
    pub(super) holds: Option<SubnetKey>,
    /// The subnet under which the host is counted as an owner.
    pub(super) counted: Option<SubnetKey>,
    /// The subnet that the next run prefers.
    pub(super) previous: Option<SubnetKey>,
    /// Whether the process is suspended, as by a debugger or a sleeping machine.
    pub(super) frozen: bool,
    pub(super) ready: bool,
    /// Whether it will renew its lease, which it does unless that is a reservation.
    renews: bool,
    /// When the process started.
    pub(super) started: Instant,
    /// The lease that it is releasing.
    pub(super) releasing: Option<SubnetKey>,
    incarnation: u32,
    network: Option<Network>,
    task: Option<BoxFuture<'static, Result<(), NetworkError>>>,
}

/// The circumstances of a start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// Whether the previous subnet is known.
    pub(super) with_previous: bool,
    /// Whether the machine rebooted: its kernel is empty and its device gone.
    pub(super) rebooted: bool,
    pub(super) seed: u64,
    pub(super) audit_every: Duration,
}

impl Host {
    pub(super) fn new(number: usize, public: Ipv4Addr, link: StoreLink) -> Self {
        Self {
            number,
            public,
            link,
            kernel: Kernel::default(),
            holds: None,
            counted: None,
            previous: None,
            frozen: false,
            ready: false,
            renews: false,
            started: Instant::now(),
            releasing: None,
            incarnation: 0,
            network: None,
            task: None,
        }
    }

    pub(super) fn start(&mut self, store: &dyn SimStore, checker: &InvariantChecker, start: Start) {
        if start.rebooted {
            *self.kernel.tables() = super::kernel::Tables::default();
        }
        self.incarnation += 1;
        self.started = Instant::now();
        self.releasing = None;
        let [_, a, b, c] = u32::try_from(self.number).unwrap_or(u32::MAX).to_be_bytes();
        let [.., d, e] = self.incarnation.to_be_bytes();
        let backend = OpenSim {
            host: self.number,
            kernel: self.kernel.clone(),
            link: self.link.clone(),
            checker: checker.clone(),
            new_mac: Mac([0x0e, a, b, c, d, e]),
            rebooted: start.rebooted,
        };
        let public = PublicAddrs::from(self.public);
        let manager = CheckedManager {
            inner: store.manager(self.link.clone(), start.seed),
            host: self.number,
            link: self.link.clone(),
            checker: checker.clone(),
            watches_twice: start.seed.is_multiple_of(4),
        };
        let external = ExternalInterface::new("eth0", 2, 1500, public);
        let mut options = NetworkOptions::new(manager, backend, external);
        options.follow_config = true;
        options.previous = self.previous.filter(|_| start.with_previous);
        options.audit_every = start.audit_every;
        options.event_backlog = 1;
        options.seed = Some(start.seed);
        let (network, task) = Network::new(options);
        self.network = Some(network);
        self.task = Some(Box::pin(task.run()));
    }

    pub(super) fn runs(&self) -> bool {
        self.network.is_some()
    }

    /// Ends the process at once, as SIGKILL does.
    pub(super) fn kill(&mut self) {
        self.network = None;
        self.task = None;
        self.frozen = false;
        self.holds = None;
        self.ready = false;
        self.link.set_own(None);
    }

    /// Makes the process leave the network; it runs until it has left.
    pub(super) fn leave(&mut self) {
        let (Some(network), Some(task)) = (self.network.take(), self.task.take()) else {
            return;
        };
        let leaving = async move { futures::future::join(task, network.shutdown(Shutdown::Remove)).await.0 };
        self.task = Some(Box::pin(leaving));
        self.releasing = self.holds.take();
        self.previous = None;
        self.ready = false;
    }

    /// Polls the process and returns how it ended, if it did.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<Result<(), NetworkError>> {
        let task = self.task.as_mut()?;
        match task.poll_unpin(cx) {
            Poll::Ready(result) => {
                self.task = None;
                Some(result)
            }
            Poll::Pending => None,
        }
    }

    /// Reads the status of the process.
    pub(super) fn observe(&mut self) {
        let status = self.network.as_ref().map(Network::summary).unwrap_or_default();
        let held = status.lease.filter(|lease| lease.lost.is_none());
        self.renews = held.as_ref().is_some_and(|lease| lease.renewal_in.is_some());
        self.holds = held.map(|lease| lease.subnet);
        self.previous = self.holds.or(self.previous);
        self.ready = status.ready;
        self.link.set_own(self.holds.or(self.previous));
    }

    /// Returns whether the host may not yet know a change of its record at this time.
    pub(super) fn is_excused(&self, changed: Instant) -> bool {
        self.link.is_excused(changed, self.renews)
    }
}

/// Wakes the simulation for a host.
pub(super) struct HostWaker {
    pub(super) number: usize,
    pub(super) woken: Arc<super::cluster::Woken>,
}

impl std::task::Wake for HostWaker {
    fn wake(self: Arc<Self>) {
        self.woken.add(self.number);
    }
}
