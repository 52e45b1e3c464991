//! The verdict on a peer.

use flannel_core::{ProbeSide, ProbeVerdict, ProbedPath};

/// The names that a verdict's detail refers to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ProbeContext {
    /// The UDP port of the tunnel, if it has one.
    pub port: Option<u16>,
    /// The external interface.
    pub interface: String,
    /// This host's public addresses.
    pub own: Vec<std::net::IpAddr>,
    /// Why there are no probes inside of the tunnel, if there are none.
    pub no_inside: String,
}

/// The loss rate that is a fault, as one in this number; a single loss never is.
const LOSSY: u32 = 20;

/// Judges a peer by its paths, and returns the verdict on its worst address family with a detail in one line.
#[must_use]
pub fn judge(paths: &[ProbedPath], context: &ProbeContext) -> (ProbeVerdict, String) {
    let families = [true, false].map(|is_v4| {
        let of = |side| paths.iter().find(|path| path.side == side && path.address.is_ipv4() == is_v4);
        (of(ProbeSide::Inside), of(ProbeSide::Outside))
    });
    let judged: Vec<_> = families
        .into_iter()
        .zip(["IPv4", "IPv6"])
        .filter_map(|((inside, outside), name)| Some((of_family(inside, outside, context)?, name)))
        .collect();
    let worst = judged.iter().rev().max_by_key(|((verdict, _), _)| weight(*verdict));
    let Some(((verdict, detail), name)) = worst else {
        let none = "none of its addresses is of a family that this host has";
        return (ProbeVerdict::Unknown, none.to_owned());
    };
    let is_of_one = judged.iter().any(|((other, _), _)| other != verdict);
    let detail = if is_of_one && !detail.is_empty() { format!("{name}: {detail}") } else { detail.clone() };
    (*verdict, detail)
}

/// Returns the rank of a verdict; the worst has the highest.
#[must_use]
pub fn weight(verdict: ProbeVerdict) -> usize {
    ProbeVerdict::ALL.iter().position(|other| *other == verdict).unwrap_or_default()
}

fn of_family(
    inside: Option<&ProbedPath>,
    outside: Option<&ProbedPath>,
    context: &ProbeContext,
) -> Option<(ProbeVerdict, String)> {
    // A path without probes is ignored.
    let inside = inside.filter(|path| path.sent > 0);
    let outside = outside.filter(|path| path.sent > 0);
    Some(match (inside, outside) {
        (None, None) => return None,
        (None, Some(outside)) if outside.answers => match lossy(outside) {
            Some(lossy) => lossy,
            None => (ProbeVerdict::UnderlayOnly, context.no_inside.clone()),
        },
        (None, Some(outside)) => (ProbeVerdict::Silent, silent(outside, "does not answer")),
        (Some(inside), outside) if inside.answers => {
            lossy(inside).or_else(|| small(inside, outside)).unwrap_or_else(|| match outside {
                Some(outside) if !outside.answers => {
                    let line =
                        format!("the tunnel works; {} does not answer ICMP outside of it", outside.address);
                    (ProbeVerdict::UnderlaySilent, line)
                }
                _ => (ProbeVerdict::Reachable, String::new()),
            })
        }
        (Some(inside), Some(outside)) if outside.answers => {
            (ProbeVerdict::TunnelBlocked, blocked(inside, outside, context))
        }
        (Some(_), Some(outside)) => {
            (ProbeVerdict::Silent, silent(outside, "answers neither inside nor outside of the tunnel"))
        }
        (Some(inside), None) => (ProbeVerdict::Silent, silent(inside, "does not answer")),
    })
}

fn blocked(inside: &ProbedPath, outside: &ProbedPath, context: &ProbeContext) -> String {
    let peer = outside.address;
    let line = "the underlay answers and the tunnel does not: ";
    if let Some(error) = &inside.error {
        return format!("{line}this host cannot send to {}: {error}", inside.address);
    }
    let Some(port) = context.port else {
        return format!(
            "{line}check the routes of both hosts, and the packet filters for {}",
            inside.address
        );
    };
    let own = context.own.iter().find(|own| own.is_ipv4() == peer.is_ipv4());
    let own = own.map_or_else(|| "this host".to_owned(), ToString::to_string);
    format!(
        "{line}UDP port {port} is likely dropped between {own} and {peer}, or flannel does not run there; to see \
         which, on both hosts: tcpdump -ni {} udp port {port}",
        context.interface
    )
}

fn silent(path: &ProbedPath, how: &str) -> String {
    match &path.error {
        Some(error) => format!("this host cannot send to {}: {error}", path.address),
        None => format!("{} {how}: the host is down, or cut off", path.address),
    }
}

fn lossy(path: &ProbedPath) -> Option<(ProbeVerdict, String)> {
    let is_lossy = path.lost >= 2 && path.lost.saturating_mul(LOSSY) > path.sent;
    let side = side(path);
    is_lossy.then(|| {
        (ProbeVerdict::Lossy, format!("{} of {} questions {side} were not answered", path.lost, path.sent))
    })
}

fn small(inside: &ProbedPath, outside: Option<&ProbedPath>) -> Option<(ProbeVerdict, String)> {
    let (path, device) = (inside.path_mtu?, inside.device_mtu?);
    let underlay = outside
        .and_then(|path| path.path_mtu)
        .map_or_else(String::new, |mtu| format!("; the underlay carries {mtu}"));
    (path < device).then(|| {
        let line = format!(
            "packets of more than {path} bytes do not come through the tunnel, whose MTU is {device}{underlay}: lower \
             the MTU (Backend.MTU), or raise that of the underlay"
        );
        (ProbeVerdict::MtuSmall, line)
    })
}

fn side(path: &ProbedPath) -> &'static str {
    if path.side == ProbeSide::Inside { "inside of the tunnel" } else { "outside of the tunnel" }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use flannel_core::ProbeMeans;

    use super::*;

    fn path(side: ProbeSide, answers: bool) -> ProbedPath {
        let address = if side == ProbeSide::Inside { [10, 5, 2, 0] } else { [192, 168, 0, 2] };
        let address = IpAddr::from(address);
        let mut path = ProbedPath::new(side, address, ProbeMeans::Icmp);
        (path.answers, path.sent, path.lost) = (answers, 3, if answers { 0 } else { 3 });
        (path.path_mtu, path.device_mtu) = (answers.then_some(1450), Some(1450));
        path
    }

    fn context() -> ProbeContext {
        ProbeContext {
            port: Some(8472),
            interface: "eth0".to_owned(),
            own: vec![IpAddr::from([192, 168, 0, 1])],
            no_inside: "no device".to_owned(),
        }
    }

    fn judged(paths: &[ProbedPath]) -> (&'static str, String) {
        let (verdict, detail) = judge(paths, &context());
        assert!(!detail.contains('\n'), "{detail}");
        (verdict.as_str(), detail)
    }

    #[test]
    fn each_pair_of_answers_has_its_verdict() {
        let [inside, outside] = [ProbeSide::Inside, ProbeSide::Outside];
        assert_eq!(judged(&[path(inside, true), path(outside, true)]), ("reachable", String::new()));
        let (name, line) = judged(&[path(inside, false), path(outside, true)]);
        assert_eq!(name, "tunnel_blocked");
        assert!(
            line.starts_with("the underlay answers and the tunnel does not: UDP port 8472 is likely dropped between 192.168.0.1 and 192.168.0.2")
                && line.ends_with("tcpdump -ni eth0 udp port 8472"),
            "{line}"
        );
        let (name, line) = judged(&[path(inside, true), path(outside, false)]);
        assert!(name == "underlay_silent" && line.contains("192.168.0.2 does not answer ICMP"), "{line}");
        let (name, line) = judged(&[path(inside, false), path(outside, false)]);
        assert!(name == "silent" && line.contains("answers neither inside nor outside"), "{line}");
        assert_eq!(judged(&[path(outside, true)]), ("underlay_only", "no device".to_owned()));
        assert_eq!(judged(&[path(outside, false)]).0, "silent");
        assert_eq!(judged(&[path(inside, false)]).0, "silent");
        assert_eq!(judged(&[]).0, "unknown");
    }

    #[test]
    fn what_this_host_cannot_send_is_its_own_fault() {
        let mut inside = path(ProbeSide::Inside, false);
        inside.error = Some("Operation not permitted".to_owned());
        let (name, line) = judged(&[inside, path(ProbeSide::Outside, true)]);
        assert!(
            name == "tunnel_blocked" && line.ends_with("cannot send to 10.5.2.0: Operation not permitted"),
            "{line}"
        );
    }

    #[test]
    fn losses_count_from_two_and_one_in_twenty_on() {
        let lost = |sent, lost| {
            let mut inside = path(ProbeSide::Inside, true);
            (inside.sent, inside.lost) = (sent, lost);
            judged(&[inside, path(ProbeSide::Outside, true)]).0
        };
        assert_eq!(
            [lost(5, 1), lost(5, 2), lost(40, 2), lost(32, 2)],
            ["reachable", "lossy", "reachable", "lossy"]
        );
    }

    #[test]
    fn a_path_that_is_smaller_than_the_device_is_named_with_both_sizes() {
        let (mut inside, mut outside) = (path(ProbeSide::Inside, true), path(ProbeSide::Outside, true));
        (inside.path_mtu, outside.path_mtu, outside.device_mtu) = (Some(1350), Some(1400), Some(1500));
        let (name, line) = judged(&[inside.clone(), outside.clone()]);
        assert_eq!(name, "mtu_small");
        assert!(
            line.contains("1350 bytes") && line.contains("MTU is 1450; the underlay carries 1400"),
            "{line}"
        );
        // A small underlay MTU does not matter as long as the tunnel fits.
        inside.path_mtu = Some(1450);
        assert_eq!(judged(&[inside, outside]).0, "reachable");
    }

    #[test]
    fn of_two_families_the_worse_one_counts_and_is_named() {
        let mut v6 = [path(ProbeSide::Inside, false), path(ProbeSide::Outside, true)];
        v6[0].address = IpAddr::from([0xfc00, 0, 0, 2, 0, 0, 0, 0]);
        v6[1].address = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2]);
        let v4 = [path(ProbeSide::Inside, true), path(ProbeSide::Outside, true)];
        let (name, line) = judged(&[v4, v6].concat());
        assert!(name == "tunnel_blocked" && line.starts_with("IPv6: the underlay answers"), "{line}");
    }
}
