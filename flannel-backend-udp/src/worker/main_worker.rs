//! The first thread: all of the packet path while there is little to do, and the first socket always.

use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::inward::Inward;
use super::outward::Outward;
use super::{Fault, Path, Step, Work};
use crate::sys::poll::{self, Ready};

/// So many steps in a row that moved much are more than one thread should do alone.
const BUSY: u32 = 8;

/// Runs until told to end. `given_back` tells by a byte each what others give back, by its index.
pub(super) fn run(work: &Work, given_back: &PipeReader) -> Result<(), Fault> {
    let mut inward: Vec<_> =
        work.parts.sockets.iter().map(|socket| Inward::new(&work.parts, socket, work.view())).collect();
    let mut outward = Outward::new(&work.parts, work.view());
    let mut duty = Duty { work, is_given: [false; 2], busy: 0 };
    loop {
        let descriptors = [
            Some(work.ended.as_fd()),
            Some(given_back.as_fd()),
            Some(outward.descriptor()).filter(|_| !duty.is_given[0]),
            inward.first().map(Path::descriptor),
            inward.get(1).map(Path::descriptor).filter(|_| !duty.is_given[1]),
        ];
        let [ended, back, device, first, second] =
            poll::wait_readable(descriptors, None).map_err(|_| outward.over())?;
        if ended.is_readable {
            return Ok(());
        }
        if back.is_readable {
            duty.take_back(given_back);
        }
        duty.serve(&mut inward, &mut outward, [device, first, second])?;
    }
}

/// What is this thread's to do.
struct Duty<'a> {
    work: &'a Work,
    /// Of the device, and of each socket but the first.
    is_given: [bool; 2],
    /// Steps in a row that moved much.
    busy: u32,
}

impl Duty<'_> {
    /// Serves what is ready. Each step may give the rest away, which is another thread's at once: two that read one queue
    /// would have packets overtake each other.
    fn serve(
        &mut self,
        inward: &mut [impl Path],
        outward: &mut impl Path,
        [mut device, first, second]: [Ready; 3],
    ) -> Result<(), Fault> {
        for (index, (path, ready)) in inward.iter_mut().zip([first, second]).enumerate() {
            if ready.is_over {
                return Err(path.over());
            }
            if ready.is_readable && !(index > 0 && self.is_given[index]) {
                self.did(path.step()?);
                // What was delivered may have been answered before the write returned.
                device.is_readable = true;
            }
        }
        if device.is_readable && !self.is_given[0] {
            self.did(outward.step()?);
        }
        Ok(())
    }

    /// Takes in what a step moved, and gives away what is too much.
    fn did(&mut self, step: Step) {
        if step.is_large() {
            self.busy += 1;
            self.work.large.fetch_add(1, Ordering::Relaxed);
        } else if step.moved > 0 {
            self.busy = 0;
        }
        if self.busy == BUSY {
            self.busy = 0;
            for (turn, is_given) in self.work.turns.iter().zip(&mut self.is_given) {
                if !std::mem::replace(is_given, true) {
                    turn.give();
                }
            }
        }
    }

    fn take_back(&mut self, mut given_back: &PipeReader) {
        let mut index = [0];
        // It is there: otherwise nobody would have told.
        if given_back.read_exact(&mut index).is_ok()
            && let Some(is_given) = self.is_given.get_mut(usize::from(index[0]))
        {
            *is_given = false;
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
    use crate::worker::Parts;
    use crate::worker::turn::Turn;

    /// Work with a turn at the device and one at a second socket, and where they are given back.
    fn work() -> (Work, PipeReader) {
        let parts = Parts::without_packets();
        let (ended, _) = io::pipe().unwrap();
        let (given_back, giver) = io::pipe().unwrap();
        let giver = Arc::new(giver);
        let turns = [(); 2].map(|()| Arc::new(Turn::new(Arc::clone(&giver)))).into();
        (Work { parts, ended: Arc::new(ended), turns, large: Arc::default() }, given_back)
    }

    #[test]
    fn only_much_without_a_pause_is_given_away_and_what_is_given_back_is_done_again() {
        let (work, given_back) = work();
        let mut duty = Duty { work: &work, is_given: [false; 2], busy: 0 };
        let [small, large] = [84, 65_536].map(|bytes| Step { moved: 1, bytes, is_full: false });
        for step in [large; 7].into_iter().chain([small]).chain([large; 7]).chain([small; 100]) {
            duty.did(step);
        }
        assert_eq!(duty.is_given, [false; 2]);
        // Waking up for nothing is no pause.
        for step in [large; 4].into_iter().chain([Step::default()]).chain([large; 4]) {
            duty.did(step);
        }
        assert_eq!(duty.is_given, [true; 2]);
        assert!(work.turns.iter().all(|turn| turn.wait()), "the others have their turns");
        work.turns[1].give_back(1);
        duty.take_back(&given_back);
        assert_eq!(duty.is_given, [true, false]);
        work.turns.iter().for_each(|turn| turn.end());
        assert!(!work.turns[1].wait());
    }

    /// A queue in which there is always much.
    struct Full {
        steps: u32,
        descriptor: File,
    }

    impl Full {
        fn new() -> Self {
            Self { steps: 0, descriptor: File::open("/dev/null").unwrap() }
        }
    }

    impl Path for Full {
        fn descriptor(&self) -> BorrowedFd<'_> {
            self.descriptor.as_fd()
        }

        fn step(&mut self) -> Result<Step, Fault> {
            self.steps += 1;
            Ok(Step { moved: 64, bytes: 65_536, is_full: true })
        }

        fn over(&self) -> Fault {
            Fault::Device("it is over".to_owned())
        }
    }

    #[test]
    fn a_queue_that_is_given_away_while_others_are_served_is_left_alone_though_it_is_ready() {
        let (work, given_back) = work();
        let mut duty = Duty { work: &work, is_given: [false; 2], busy: BUSY - 1 };
        let (mut sockets, mut device) = ([(); 2].map(|()| Full::new()), Full::new());
        let ready = [Ready { is_readable: true, is_over: false }; 3];
        duty.serve(&mut sockets, &mut device, ready).unwrap();
        assert_eq!(duty.is_given, [true; 2]);
        assert_eq!((sockets[0].steps, sockets[1].steps, device.steps), (1, 0, 0));
        for (index, turn) in work.turns.iter().enumerate() {
            turn.give_back(index);
            duty.take_back(&given_back);
        }
        duty.serve(&mut sockets, &mut device, ready).unwrap();
        assert_eq!((sockets[0].steps, sockets[1].steps, device.steps), (2, 1, 1));
    }
}
