//! The main worker: serves the first socket always, and every queue while the load is light.

use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::inbound::Inbound;
use super::outbound::Outbound;
use super::{PacketQueue, PathFault, Step, ThreadContext};
use crate::sys::poll::{self, Ready};

/// After this many consecutive large steps the main worker leases out its other queues.
const BUSY: u32 = 8;

/// Runs until shutdown. `returned` yields one byte for each returned queue: its index.
pub(super) fn run(context: &ThreadContext, returned: &PipeReader) -> Result<(), PathFault> {
    let mut inbound: Vec<_> = context
        .parts
        .sockets
        .iter()
        .map(|socket| Inbound::new(&context.parts, socket, context.view()))
        .collect();
    let mut outbound = Outbound::new(&context.parts, context.view());
    let mut worker = MainWorker { context, is_leased: [false; 2], busy: 0 };
    loop {
        let descriptors = [
            Some(context.ended.as_fd()),
            Some(returned.as_fd()),
            Some(outbound.descriptor()).filter(|_| !worker.is_leased[0]),
            inbound.first().map(PacketQueue::descriptor),
            inbound.get(1).map(PacketQueue::descriptor).filter(|_| !worker.is_leased[1]),
        ];
        let [ended, back, device, first, second] =
            poll::wait_readable(descriptors, None).map_err(|_| outbound.closed())?;
        if ended.is_readable {
            return Ok(());
        }
        if back.is_readable {
            worker.take_back(returned);
        }
        worker.serve(&mut inbound, &mut outbound, [device, first, second])?;
    }
}

/// Which queues the main worker serves.
struct MainWorker<'a> {
    context: &'a ThreadContext,
    /// Whether the device, and each socket except the first, is leased out.
    is_leased: [bool; 2],
    /// Consecutive large steps.
    busy: u32,
}

impl MainWorker<'_> {
    /// Serves the ready queues. A step may lease out the remaining ones, which must not be read here any more: two readers of
    /// one queue would reorder packets.
    fn serve(
        &mut self,
        inbound: &mut [impl PacketQueue],
        outbound: &mut impl PacketQueue,
        [mut device, first, second]: [Ready; 3],
    ) -> Result<(), PathFault> {
        for (index, (path, ready)) in inbound.iter_mut().zip([first, second]).enumerate() {
            if ready.is_over {
                return Err(path.closed());
            }
            if ready.is_readable && !(index > 0 && self.is_leased[index]) {
                self.record(path.step()?);
                // The reply to a delivered packet may be there before the write returns.
                device.is_readable = true;
            }
        }
        if device.is_readable && !self.is_leased[0] {
            self.record(outbound.step()?);
        }
        Ok(())
    }

    /// Records a step, and leases out the other queues under sustained load.
    fn record(&mut self, step: Step) {
        if step.is_large() {
            self.busy += 1;
            self.context.large.fetch_add(1, Ordering::Relaxed);
        } else if step.moved > 0 {
            self.busy = 0;
        }
        if self.busy == BUSY {
            self.busy = 0;
            for (lease, is_leased) in self.context.leases.iter().zip(&mut self.is_leased) {
                if !std::mem::replace(is_leased, true) {
                    lease.give();
                }
            }
        }
    }

    fn take_back(&mut self, mut returned: &PipeReader) {
        let mut index = [0];
        // Doesn't block: the descriptor is readable.
        if returned.read_exact(&mut index).is_ok()
            && let Some(is_leased) = self.is_leased.get_mut(usize::from(index[0]))
        {
            *is_leased = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, PipeReader};
    use std::os::fd::BorrowedFd;
    use std::sync::Arc;

    use super::*;
    use crate::worker::PathParts;
    use crate::worker::queue_lease::QueueLease;

    /// Returns a context with leases for the device and a second socket, and the pipe of returned leases.
    fn context() -> (ThreadContext, PipeReader) {
        let parts = PathParts::without_packets();
        let (ended, _) = io::pipe().unwrap();
        let (returned, returns) = io::pipe().unwrap();
        let returns = Arc::new(returns);
        let leases = [(); 2].map(|()| Arc::new(QueueLease::new(Arc::clone(&returns)))).into();
        (ThreadContext { parts, ended: Arc::new(ended), leases, large: Arc::default() }, returned)
    }

    #[test]
    fn queues_are_leased_out_only_under_sustained_load_and_served_again_when_returned() {
        let (context, returned) = context();
        let mut worker = MainWorker { context: &context, is_leased: [false; 2], busy: 0 };
        let [small, large] = [84, 65_536].map(|bytes| Step { moved: 1, bytes, is_full: false });
        for step in [large; 7].into_iter().chain([small]).chain([large; 7]).chain([small; 100]) {
            worker.record(step);
        }
        assert_eq!(worker.is_leased, [false; 2]);
        // A step that moves nothing doesn't reset the count.
        for step in [large; 4].into_iter().chain([Step::default()]).chain([large; 4]) {
            worker.record(step);
        }
        assert_eq!(worker.is_leased, [true; 2]);
        assert!(context.leases.iter().all(|lease| lease.wait()), "the other threads hold their leases");
        context.leases[1].give_back(1);
        worker.take_back(&returned);
        assert_eq!(worker.is_leased, [true, false]);
        context.leases.iter().for_each(|lease| lease.end());
        assert!(!context.leases[1].wait());
    }

    /// A queue that is always full.
    struct FullQueue {
        steps: u32,
        descriptor: File,
    }

    impl FullQueue {
        fn new() -> Self {
            Self { steps: 0, descriptor: File::open("/dev/null").unwrap() }
        }
    }

    impl PacketQueue for FullQueue {
        fn descriptor(&self) -> BorrowedFd<'_> {
            self.descriptor.as_fd()
        }

        fn step(&mut self) -> Result<Step, PathFault> {
            self.steps += 1;
            Ok(Step { moved: 64, bytes: 65_536, is_full: true })
        }

        fn closed(&self) -> PathFault {
            PathFault::Device("closed".to_owned())
        }
    }

    #[test]
    fn a_queue_that_is_leased_out_during_a_pass_is_not_read() {
        let (context, returned) = context();
        let mut worker = MainWorker { context: &context, is_leased: [false; 2], busy: BUSY - 1 };
        let (mut sockets, mut device) = ([(); 2].map(|()| FullQueue::new()), FullQueue::new());
        let ready = [Ready { is_readable: true, is_over: false }; 3];
        worker.serve(&mut sockets, &mut device, ready).unwrap();
        assert_eq!(worker.is_leased, [true; 2]);
        assert_eq!((sockets[0].steps, sockets[1].steps, device.steps), (1, 0, 0));
        for (index, lease) in context.leases.iter().enumerate() {
            lease.give_back(index);
            worker.take_back(&returned);
        }
        worker.serve(&mut sockets, &mut device, ready).unwrap();
        assert_eq!((sockets[0].steps, sockets[1].steps, device.steps), (2, 1, 1));
    }
}
