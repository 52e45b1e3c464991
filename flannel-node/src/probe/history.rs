//! The aggregated measurements of a peer.

use std::time::{Duration, Instant};

use flannel_core::{PeerProbe, ProbeMeans, ProbeSide, ProbedPath};

use super::path::{PathMeasurement, ProbePlan};
use super::verdict::{ProbeContext, judge};

/// The number of recent probes that the loss of a path is computed from.
const WINDOW: u32 = 32;

/// The path MTU is measured in the first turn and in every turn of this number after it.
const SIZES_EVERY: u32 = 10;

/// The measurements of a peer over time.
#[derive(Clone, Debug)]
pub struct History {
    paths: Vec<PathHistory>,
    turns: u32,
    last: Option<Instant>,
    probe: PeerProbe,
}

#[derive(Clone, Debug)]
struct PathHistory {
    shown: ProbedPath,
    /// The recent probes, the newest in the lowest bit; a bit is set if the probe was lost.
    lost: u32,
}

impl History {
    pub(super) fn new() -> Self {
        Self { paths: Vec::new(), turns: 0, last: None, probe: PeerProbe::default() }
    }

    /// Returns whether the next turn measures the path MTU.
    pub(super) fn measures_sizes(&self) -> bool {
        self.turns.is_multiple_of(SIZES_EVERY)
    }

    /// Restricts a plan to the means that the peer answered last. Turns that measure the path MTU try all means.
    pub(super) fn narrow(&self, plan: &mut ProbePlan) {
        let known =
            self.paths.iter().find(|path| is(&path.shown, plan.side, plan.address) && path.shown.answers);
        if let Some(path) = known
            && !self.measures_sizes()
        {
            plan.means.retain(|means| *means == path.shown.by);
            if plan.means.is_empty() {
                plan.means.push(ProbeMeans::Icmp);
            }
        }
    }

    /// Adds the measurements of a turn.
    pub(super) fn add(&mut self, measured: Vec<PathMeasurement>, context: &ProbeContext, now: Instant) {
        self.paths.retain(|path| measured.iter().any(|other| is(&path.shown, other.side, other.address)));
        for measured in measured {
            self.add_path(measured);
        }
        self.paths.sort_by_key(|path| (!path.shown.address.is_ipv4(), path.shown.side));
        let paths: Vec<ProbedPath> = self.paths.iter().map(|path| path.shown.clone()).collect();
        let (verdict, detail) = judge(&paths, context);
        let mut probe = PeerProbe::default();
        (probe.verdict, probe.detail, probe.paths) = (verdict, detail, paths);
        self.probe = probe;
        self.last = Some(now);
        // A silent path has no MTU; it is measured when the path recovers.
        let is_sized = self.paths.iter().all(|path| path.shown.path_mtu.is_some() || !path.shown.answers);
        self.turns = if is_sized { self.turns.wrapping_add(1) } else { 0 };
    }

    fn add_path(&mut self, measured: PathMeasurement) {
        let at = self.paths.iter().position(|path| is(&path.shown, measured.side, measured.address));
        let at = at.unwrap_or_else(|| {
            let shown = ProbedPath::new(measured.side, measured.address, measured.by);
            self.paths.push(PathHistory { shown, lost: 0 });
            self.paths.len() - 1
        });
        let Some(path) = self.paths.get_mut(at) else { return };
        let answered = measured.sent - measured.lost;
        let (mut sent, mut lost) = (measured.sent, measured.lost);
        // An outage is not packet loss: after it, the probes lost during it do not count, not even those of the turn in which
        // it ended.
        if answered == 0 || !path.shown.answers {
            (path.lost, path.shown.sent) = (0, 0);
        }
        if answered > 0 && !path.shown.answers {
            (sent, lost) = (answered, 0);
        }
        let bits = 1_u32.checked_shl(lost).map_or(u32::MAX, |bit| bit - 1);
        // A turn ends with its answer, so the answered probes are the newest.
        path.lost = path.lost.checked_shl(sent).unwrap_or(0) | bits.checked_shl(answered).unwrap_or(0);
        let shown = &mut path.shown;
        shown.sent = (shown.sent + sent).min(WINDOW);
        shown.lost = path.lost.count_ones().min(shown.sent);
        (shown.by, shown.answers, shown.error) = (measured.by, answered > 0, measured.error);
        let time = measured.round_trip.map(micros);
        shown.round_trip_microseconds = match (shown.round_trip_microseconds, time) {
            // Smoothed like TCP's (RFC 6298, section 2).
            (Some(before), Some(now)) => Some((before * 7 + now) / 8),
            (before, now) => now.or(before),
        };
        shown.device_mtu = measured.device_mtu.or(shown.device_mtu);
        shown.path_mtu = match answered {
            0 => None,
            _ => measured.path_mtu.or(shown.path_mtu),
        };
    }

    /// Returns the state with the age of the last turn.
    pub fn show(&self, now: Instant) -> PeerProbe {
        let mut probe = self.probe.clone();
        probe.age = self.last.map(|last| now.saturating_duration_since(last)).unwrap_or_default();
        probe
    }

    /// Returns the state without its age.
    pub fn probe(&self) -> &PeerProbe {
        &self.probe
    }
}

fn is(path: &ProbedPath, side: ProbeSide, address: std::net::IpAddr) -> bool {
    path.side == side && path.address == address
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 8)
}

#[cfg(test)]
mod tests {
    use flannel_core::ProbeVerdict;

    use super::*;

    fn measured(side: ProbeSide, sent: u32, lost: u32) -> PathMeasurement {
        PathMeasurement {
            side,
            address: if side == ProbeSide::Inside { [10, 5, 2, 0] } else { [192, 168, 0, 2] }.into(),
            by: ProbeMeans::Udp,
            sent,
            lost,
            round_trip: (sent > lost).then_some(Duration::from_micros(800)),
            path_mtu: None,
            device_mtu: None,
            error: None,
        }
    }

    fn turn(history: &mut History, inside: (u32, u32), outside: (u32, u32)) -> ProbeVerdict {
        let paths = vec![
            measured(ProbeSide::Inside, inside.0, inside.1),
            measured(ProbeSide::Outside, outside.0, outside.1),
        ];
        history.add(paths, &ProbeContext::default(), Instant::now());
        history.probe().verdict
    }

    #[test]
    fn one_silent_turn_blocks_a_tunnel_and_one_answer_frees_it() {
        let mut history = History::new();
        assert_eq!(turn(&mut history, (1, 0), (1, 0)), ProbeVerdict::Reachable);
        assert_eq!(turn(&mut history, (3, 3), (1, 0)), ProbeVerdict::TunnelBlocked);
        assert_eq!((history.probe().paths[0].sent, history.probe().paths[0].lost), (3, 3));
        // An outage is not packet loss.
        assert_eq!(turn(&mut history, (1, 0), (1, 0)), ProbeVerdict::Reachable);
        assert_eq!((history.probe().paths[0].sent, history.probe().paths[0].lost), (1, 0));
        // Neither is one that ends within a turn.
        assert_eq!(turn(&mut history, (3, 3), (1, 0)), ProbeVerdict::TunnelBlocked);
        assert_eq!(turn(&mut history, (3, 2), (1, 0)), ProbeVerdict::Reachable);
        assert_eq!((history.probe().paths[0].sent, history.probe().paths[0].lost), (1, 0));
        assert_eq!(turn(&mut history, (3, 2), (1, 0)), ProbeVerdict::Lossy);
    }

    #[test]
    fn losses_are_counted_over_the_last_questions() {
        let mut history = History::new();
        for _ in 0..100 {
            turn(&mut history, (4, 1), (2, 0));
        }
        let paths = &history.probe().paths;
        assert_eq!((paths[0].sent, paths[0].lost, paths[1].lost), (32, 8, 0));
        assert_eq!(history.probe().verdict, ProbeVerdict::Lossy);
        assert_eq!(turn(&mut history, (40, 40), (0, 0)), ProbeVerdict::Silent);
    }

    #[test]
    fn sizes_are_measured_first_then_seldom_and_again_after_a_silence() {
        let mut history = History::new();
        let mut sized = Vec::new();
        for at in 0..25 {
            let wants = history.measures_sizes();
            sized.extend(wants.then_some(at));
            let paths = [ProbeSide::Inside, ProbeSide::Outside].map(|side| PathMeasurement {
                path_mtu: (wants && at != 12).then_some(1450),
                ..measured(side, 1, u32::from(at == 12 && side == ProbeSide::Inside))
            });
            history.add(paths.to_vec(), &ProbeContext::default(), Instant::now());
        }
        assert_eq!(sized, [0, 10, 14, 24]);
    }
}
