//! The measurement of one path to a peer: chooses the next probe from the results so far.
//!
//! 1. A small probe by each means until one is answered, then by that means only.
//! 2. As many more as planned. A path without answers is given up after [`SILENT_AFTER`].
//! 3. If the plan includes the size: a packet of the device's MTU, and if that is lost, a binary search.

use std::net::IpAddr;
use std::time::Duration;

use flannel_core::{ProbeMeans, ProbeSide};

use super::packet::smallest;

/// The number of lost probes after which a path counts as silent.
const SILENT_AFTER: u32 = 3;

/// The timeout of a small probe: twice the longest round trip on earth.
const PATIENCE: Duration = Duration::from_secs(1);

/// The number of probes of a size that must be lost before the size counts as too large.
const TRIES: u32 = 2;

/// A plan for measuring a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ProbePlan {
    pub(super) side: ProbeSide,
    pub(super) address: IpAddr,
    /// The means, in order of preference; not empty.
    pub(super) means: Vec<ProbeMeans>,
    /// The number of answers that are enough.
    pub(super) enough: u32,
    /// The maximum number of small probes.
    pub(super) most: u32,
    /// The pause between two of them.
    pub(super) pause: Duration,
    /// The MTU of the first device of the path; `None` if the size is not measured.
    pub(super) device_mtu: Option<u32>,
}

/// The next probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ProbeRequest {
    /// The pause before it.
    pub(super) after: Duration,
    pub(super) by: ProbeMeans,
    /// The size of the IP packet, in bytes.
    pub(super) size: u32,
    /// The timeout.
    pub(super) patience: Duration,
}

/// The result of a probe.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum ProbeResult {
    /// The peer answered after this time.
    Answered(Duration),
    /// No answer arrived in time.
    Lost,
    /// The packet exceeds the device's MTU.
    TooLarge,
    /// This host failed to send it, for this reason.
    Refused(String),
}

/// A measurement in progress.
#[derive(Clone, Debug)]
pub(super) struct PathProbe {
    plan: ProbePlan,
    /// The index of the current means in the plan, and whether the peer answers it.
    means: usize,
    is_proven: bool,
    pub(super) sent: u32,
    pub(super) lost: u32,
    took: Duration,
    error: Option<String>,
    sizes: Option<Sizes>,
}

/// The bounds of the path MTU.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// The largest size that was answered.
    passes: u32,
    /// The smallest size that was lost, or the device's MTU plus one.
    fails: u32,
    /// The size under test, and the number of attempts.
    trying: u32,
    tries: u32,
}

/// The measurement of a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct PathMeasurement {
    pub(super) side: ProbeSide,
    pub(super) address: IpAddr,
    pub(super) by: ProbeMeans,
    pub(super) sent: u32,
    pub(super) lost: u32,
    /// The mean round-trip time.
    pub(super) round_trip: Option<Duration>,
    /// The largest packet that was answered.
    pub(super) path_mtu: Option<u32>,
    pub(super) device_mtu: Option<u32>,
    pub(super) error: Option<String>,
}

impl PathProbe {
    pub(super) fn new(plan: ProbePlan) -> Self {
        let took = Duration::ZERO;
        Self { plan, means: 0, is_proven: false, sent: 0, lost: 0, took, error: None, sizes: None }
    }

    /// Returns the next probe; `None` if the measurement is complete.
    pub(super) fn next(&self) -> Option<ProbeRequest> {
        let by = *self.plan.means.get(self.means)?;
        if let Some(sizes) = self.sizes {
            let is_known = sizes.passes + 1 >= sizes.fails;
            let patience = self.round_trip().map_or(PATIENCE, |time| time * 8);
            let patience = patience.clamp(PATIENCE / 4, PATIENCE);
            return (!is_known).then_some(ProbeRequest {
                after: Duration::ZERO,
                by,
                size: sizes.trying,
                patience,
            });
        }
        let is_enough = self.answered() >= self.plan.enough || self.sent >= self.plan.most;
        let is_silent = self.answered() == 0 && self.lost >= SILENT_AFTER;
        let after = if self.sent == 0 { Duration::ZERO } else { self.plan.pause };
        let size = smallest(self.plan.address);
        (!is_enough && !is_silent).then_some(ProbeRequest { after, by, size, patience: PATIENCE })
    }

    /// Records the result of the last probe.
    pub(super) fn hear(&mut self, outcome: ProbeResult) {
        if self.sizes.is_some() {
            self.hear_size(&outcome);
            return;
        }
        match outcome {
            ProbeResult::Answered(time) => {
                self.is_proven = true;
                self.error = None;
                self.took += time;
                self.sent += 1;
            }
            // The peer may not answer this means at all.
            ProbeResult::Lost | ProbeResult::TooLarge | ProbeResult::Refused(_)
                if !self.is_proven && self.means + 1 < self.plan.means.len() =>
            {
                self.means += 1;
            }
            ProbeResult::Lost | ProbeResult::TooLarge => {
                (self.sent, self.lost) = (self.sent + 1, self.lost + 1)
            }
            ProbeResult::Refused(why) => {
                (self.sent, self.lost) = (self.sent + 1, self.lost + 1);
                self.error = Some(why);
            }
        }
        if self.next().is_none()
            && self.answered() > 0
            && let Some(device) = self.plan.device_mtu
        {
            let passes = smallest(self.plan.address);
            self.sizes = Some(Sizes { passes, fails: device.max(passes) + 1, trying: device, tries: 0 });
        }
    }

    fn hear_size(&mut self, outcome: &ProbeResult) {
        let Some(sizes) = &mut self.sizes else { return };
        sizes.tries += 1;
        match outcome {
            ProbeResult::Answered(_) => sizes.passes = sizes.trying,
            ProbeResult::Lost | ProbeResult::Refused(_) if sizes.tries < TRIES => return,
            ProbeResult::Lost | ProbeResult::Refused(_) | ProbeResult::TooLarge => sizes.fails = sizes.trying,
        }
        (sizes.trying, sizes.tries) = (sizes.passes.midpoint(sizes.fails), 0);
    }

    fn answered(&self) -> u32 {
        self.sent - self.lost
    }

    fn round_trip(&self) -> Option<Duration> {
        self.took.checked_div(self.answered())
    }

    /// Returns the measurement.
    pub(super) fn finish(self) -> PathMeasurement {
        let round_trip = self.round_trip();
        let Self { plan, means, sent, lost, error, sizes, .. } = self;
        PathMeasurement {
            side: plan.side,
            address: plan.address,
            by: plan.means.get(means).copied().unwrap_or(ProbeMeans::Icmp),
            sent,
            lost,
            round_trip,
            path_mtu: sizes.map(|sizes| sizes.passes),
            device_mtu: plan.device_mtu,
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(enough: u32, most: u32, device_mtu: Option<u32>) -> ProbePlan {
        ProbePlan {
            side: ProbeSide::Inside,
            address: IpAddr::from([10, 5, 2, 0]),
            means: vec![ProbeMeans::Udp, ProbeMeans::Icmp],
            enough,
            most,
            pause: Duration::ZERO,
            device_mtu,
        }
    }

    const TIME: Duration = Duration::from_millis(2);

    /// Measures a simulated path, and returns the number of probes.
    fn measure(
        plan: ProbePlan,
        mut world: impl FnMut(ProbeRequest) -> ProbeResult,
    ) -> (PathMeasurement, u32) {
        let mut measuring = PathProbe::new(plan);
        let mut asked = 0;
        while let Some(question) = measuring.next() {
            asked += 1;
            assert!(asked < 100, "it does not end");
            measuring.hear(world(question));
        }
        (measuring.finish(), asked)
    }

    #[test]
    fn a_good_way_costs_one_question_and_one_more_for_its_size() {
        let (measured, asked) = measure(plan(1, 3, Some(1450)), |_| ProbeResult::Answered(TIME));
        assert_eq!((measured.path_mtu, asked), (Some(1450), 2));
        assert_eq!((measured.sent, measured.lost, measured.round_trip), (1, 0, Some(TIME)));
        let (measured, asked) = measure(plan(1, 3, None), |_| ProbeResult::Answered(TIME));
        assert_eq!((measured.path_mtu, asked), (None, 1));
    }

    #[test]
    fn a_peer_without_a_responder_is_asked_by_icmp_and_nothing_counts_as_lost() {
        let by_icmp = |question: ProbeRequest| {
            if question.by == ProbeMeans::Icmp { ProbeResult::Answered(TIME) } else { ProbeResult::Lost }
        };
        let (measured, asked) = measure(plan(5, 5, None), by_icmp);
        assert_eq!((measured.by, measured.sent, measured.lost, asked), (ProbeMeans::Icmp, 5, 0, 6));
    }

    #[test]
    fn lost_answers_count_once_a_means_is_known_and_silence_ends_early() {
        let mut n = 0;
        let (measured, _) = measure(plan(9, 9, None), |_| {
            n += 1;
            if n % 3 == 0 { ProbeResult::Lost } else { ProbeResult::Answered(TIME) }
        });
        assert_eq!((measured.by, measured.sent, measured.lost), (ProbeMeans::Udp, 9, 3));
        let (measured, asked) = measure(plan(9, 9, Some(1450)), |_| ProbeResult::Lost);
        assert_eq!((measured.sent, measured.lost, asked, measured.path_mtu), (3, 3, 4, None));
        let (measured, _) = measure(plan(1, 3, None), |_| ProbeResult::Refused("no route".to_owned()));
        assert_eq!((measured.lost, measured.error.as_deref()), (3, Some("no route")));
    }

    #[test]
    fn the_largest_packet_that_comes_through_is_found_to_the_byte_in_few_questions() {
        for limit in [68, 500, 576, 1280, 1399, 1400, 1449, 1450] {
            let (measured, asked) = measure(plan(1, 3, Some(1450)), |question| match question.size {
                size if size <= limit => ProbeResult::Answered(TIME),
                _ => ProbeResult::Lost,
            });
            assert_eq!(measured.path_mtu, Some(limit));
            assert!(asked <= 26, "{asked} questions for {limit}");
        }
        // A single loss does not count as a small MTU.
        let mut is_lost = false;
        let (measured, _) = measure(plan(1, 3, Some(1450)), |question| {
            is_lost = !is_lost && question.size == 1450;
            if is_lost { ProbeResult::Lost } else { ProbeResult::Answered(TIME) }
        });
        assert_eq!(measured.path_mtu, Some(1450));
        let (measured, asked) = measure(plan(1, 3, Some(1450)), |question| match question.size {
            size if size <= 1400 => ProbeResult::Answered(TIME),
            _ => ProbeResult::TooLarge,
        });
        assert_eq!(measured.path_mtu, Some(1400));
        assert!(asked <= 13, "what the kernel refuses is not tried twice: {asked}");
    }
}
