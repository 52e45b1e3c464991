//! Accounting of a running ping by sequence numbers and arrival times.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The result of a running ping.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct PingReport {
    /// The number of requests sent, or rejected by the kernel without a route.
    pub sent: u64,
    /// The number of answered requests.
    pub received: u64,
    /// The sequence numbers of unanswered requests, from 0.
    pub lost: Vec<RangeInclusive<u64>>,
    /// The number of duplicate answers.
    pub duplicates: u64,
    /// The number of answers with other bytes than were sent.
    pub altered: u64,
    /// The longest time between two answers, between the start and the first, or between the last and the stop.
    pub longest_gap: Duration,
    /// The round-trip times; `None` without an answer.
    pub round_trip: Option<RoundTrip>,
    /// The kernel's error when it last rejected a request.
    pub last_refusal: Option<String>,
}

/// Round-trip times.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RoundTrip {
    /// The shortest.
    pub min: Duration,
    /// The mean.
    pub average: Duration,
    /// The longest.
    pub max: Duration,
}

impl PingReport {
    /// Returns the number of unanswered requests.
    #[must_use]
    pub fn lost_count(&self) -> u64 {
        self.sent - self.received
    }
}

/// Writes one line, such as `900 sent, 898 lost: 3-900, longest gap 4.5s, …`.
impl fmt::Display for PingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} lost", self.sent, self.lost_count())?;
        for (i, range) in self.lost.iter().enumerate() {
            let separator = if i == 0 { ": " } else { ", " };
            match (range.start(), range.end()) {
                (start, end) if start == end => write!(f, "{separator}{start}")?,
                (start, end) => write!(f, "{separator}{start}-{end}")?,
            }
        }
        for (count, name) in [(self.duplicates, "duplicate"), (self.altered, "altered")] {
            if count > 0 {
                write!(f, ", {count} {name}")?;
            }
        }
        write!(f, ", longest gap {:.1?}", self.longest_gap)?;
        if let Some(RoundTrip { min, average, max }) = self.round_trip {
            write!(f, ", round trip {min:.1?} / {average:.1?} / {max:.1?}")?;
        }
        if let Some(refusal) = &self.last_refusal {
            write!(f, ", last refusal: {refusal}")?;
        }
        Ok(())
    }
}

/// The answers so far. All times are relative to the start of the ping.
#[derive(Debug, Default)]
pub(super) struct Answers {
    answered: Vec<bool>,
    received: u64,
    duplicates: u64,
    altered: u64,
    last_arrival: Duration,
    longest_gap: Duration,
    round_trips: Option<(Duration, Duration, Duration)>,
}

impl Answers {
    /// Records an answer to request number `sequence`, one of the `sent` so far.
    pub(super) fn note(&mut self, sequence: u64, sent: u64, round_trip: Duration, arrival: Duration) {
        let index = usize::try_from(sequence).unwrap_or(usize::MAX);
        if sequence >= sent {
            self.altered += 1;
            return;
        }
        if index >= self.answered.len() {
            self.answered.resize(index + 1, false);
        }
        if std::mem::replace(&mut self.answered[index], true) {
            self.duplicates += 1;
            return;
        }
        self.received += 1;
        self.longest_gap = self.longest_gap.max(arrival.saturating_sub(self.last_arrival));
        self.last_arrival = self.last_arrival.max(arrival);
        let (min, sum, max) = self.round_trips.unwrap_or((round_trip, Duration::ZERO, round_trip));
        self.round_trips = Some((min.min(round_trip), sum + round_trip, max.max(round_trip)));
    }

    /// Records an answer with other bytes than were sent.
    pub(super) fn note_altered(&mut self) {
        self.altered += 1;
    }

    /// Returns the number of answered requests.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Returns the report of a ping that sent `sent` requests until `stopped`.
    pub(super) fn report(&self, sent: u64, stopped: Duration, last_refusal: Option<String>) -> PingReport {
        let mut lost: Vec<RangeInclusive<u64>> = Vec::new();
        let answered = self.answered.iter().copied().chain(std::iter::repeat(false));
        for (sequence, _) in (0..sent).zip(answered).filter(|(_, answered)| !answered) {
            match lost.last_mut() {
                Some(range) if range.end() + 1 == sequence => *range = *range.start()..=sequence,
                _ => lost.push(sequence..=sequence),
            }
        }
        let average = |sum: Duration| sum / u32::try_from(self.received.max(1)).unwrap_or(u32::MAX);
        PingReport {
            sent,
            received: self.received,
            lost,
            duplicates: self.duplicates,
            altered: self.altered,
            longest_gap: self.longest_gap.max(stopped.saturating_sub(self.last_arrival)),
            round_trip: self.round_trips.map(|(min, sum, max)| RoundTrip { min, average: average(sum), max }),
            last_refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn unanswered_requests_are_lost_and_the_gap_is_measured() {
        let mut answers = Answers::default();
        for (sequence, arrival) in [(0, 2), (1, 12), (5, 53), (7, 72), (6, 74), (6, 75)] {
            answers.note(sequence, 10, ms(2), ms(arrival));
        }
        answers.note(10, 10, ms(2), ms(80));
        let report = answers.report(10, ms(95), None);
        assert_eq!((report.sent, report.received, report.lost_count()), (10, 5, 5));
        assert_eq!(report.lost, [2..=4, 8..=9]);
        assert_eq!((report.duplicates, report.altered), (1, 1));
        assert_eq!(report.longest_gap, ms(41));
        assert_eq!(report.round_trip, Some(RoundTrip { min: ms(2), average: ms(2), max: ms(2) }));
        assert!(
            report
                .to_string()
                .starts_with("10 sent, 5 lost: 2-4, 8-9, 1 duplicate, 1 altered, longest gap 41")
        );
    }

    #[test]
    fn a_gap_at_the_end_counts_until_the_stop() {
        let mut answers = Answers::default();
        answers.note(0, 100, ms(1), ms(1));
        assert_eq!(answers.report(100, ms(500), None).longest_gap, ms(499));
        let silent = Answers::default().report(3, ms(30), None);
        assert_eq!((silent.longest_gap, silent.round_trip), (ms(30), None));
        assert_eq!(silent.lost, [0..=2]);
    }
}
