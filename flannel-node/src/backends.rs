//! Which backend a configuration asks for.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use flannel_backend_extension::{OpenAlloc, OpenExtension};
use flannel_backend_host_gw::OpenHostGw;
use flannel_backend_udp::OpenUdp;
use flannel_backend_vxlan::OpenVxlan;
use flannel_core::{
    Backend, BackendError, Dirty, NetworkConfig, OpenBackend, OpenRequest, PeerSet, Plan, PlanRequest,
};
use flannel_netlink::Namespace;
use tokio::sync::watch;

use crate::service_manager::FdStore;

mod migrating;

use migrating::MigratingBackend;

/// The backends that this daemon has.
#[derive(Clone, Debug)]
pub struct Backends {
    namespace: Namespace,
    peers: Option<watch::Sender<BTreeSet<IpAddr>>>,
    store: Option<Arc<FdStore>>,
}

impl Backends {
    /// Takes the namespace in which the backends work, and whom to tell of the public addresses of all peers, if anybody
    /// wants to know: that costs a look at all peers whenever one changes.
    pub fn new(namespace: Namespace, peers: Option<watch::Sender<BTreeSet<IpAddr>>>) -> Self {
        Self { namespace, peers, store: None }
    }

    /// Keeps what a restart shall not cost in a store.
    pub fn with_store(self, store: Option<FdStore>) -> Self {
        Self { store: store.map(Arc::new), ..self }
    }

    /// Opens the one that a configuration names.
    fn one(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        match request.config.backend.name.to_lowercase().as_str() {
            "vxlan" => OpenVxlan::new(self.namespace.clone()).open(request),
            "host-gw" => OpenHostGw::new(self.namespace.clone()).open(request),
            "udp" => self.udp().open(request),
            "extension" => OpenExtension::new(self.namespace.clone()).open(request),
            "alloc" => OpenAlloc.open(request),
            name => Err(unknown(name)),
        }
    }

    /// Tells whoever wants to know it where the peers are.
    fn tell(&self, peers: &PeerSet, dirty: &Dirty) {
        let Some(told) = self.peers.as_ref().filter(|_| *dirty != Dirty::NONE) else { return };
        let peers = peers.iter().flat_map(|peer| peer.attrs.public.addresses()).collect();
        told.send_if_modified(|told| {
            let is_news = *told != peers;
            *told = peers;
            is_news
        });
    }

    fn udp(&self) -> OpenUdp {
        let open = OpenUdp::new(self.namespace.clone()).with_vxlan_peers();
        match self.store.clone() {
            Some(store) => open.with_store(store),
            None => open,
        }
    }
}

impl OpenBackend for Backends {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let backend = MigratingBackend::open(self.clone(), request)?;
        if let Some(store) =
            self.store.as_ref().filter(|_| !request.config.backend.name.eq_ignore_ascii_case("udp"))
        {
            // What another backend left.
            store.give_up();
        }
        Ok(Box::new(backend))
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        match request.config.backend.name.to_lowercase().as_str() {
            "vxlan" => {
                let mut plan = OpenVxlan::new(self.namespace.clone()).plan(request)?;
                // Those are reached by UDP beside the tunnel.
                let is_udp = |peer| request.peers.peer(&peer).is_some_and(|lease| migrating::is_udp(lease));
                plan.unreachable.retain(|failure| !is_udp(failure.peer));
                Ok(plan)
            }
            "host-gw" => OpenHostGw::new(self.namespace.clone()).plan(request),
            "udp" => Err(BackendError::Host(
                "there is nothing to plan for the backend udp: its device ends with its daemon, and a start makes \
                 everything anew"
                    .to_owned(),
            )),
            "extension" => OpenExtension::new(self.namespace.clone()).plan(request),
            "alloc" => OpenAlloc.plan(request),
            name => Err(unknown(name)),
        }
    }
}

/// Says that there is no such backend.
pub fn unknown(name: &str) -> BackendError {
    BackendError::UnknownType(format!("{name} (this daemon has: vxlan, host-gw, udp, extension, alloc)"))
}

/// The UDP port on which the backend of a configuration hears its peers; none if it has no such port.
pub fn tunnel_port(config: &NetworkConfig) -> Option<u16> {
    let default = default_port(&config.backend.name.to_lowercase())?;
    // What is wrong with it, the backend says.
    let given = config.backend.options.object().ok().and_then(|options| options.unsigned("Port").ok()?);
    given.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).or(Some(default))
}

/// The UDP port of a backend whose configuration names none.
pub fn default_port(backend: &str) -> Option<u16> {
    match backend {
        "vxlan" => Some(8472),
        "udp" => Some(8285),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::ExternalInterface;

    use super::*;

    const PAGE: &str = include_str!("../../docs/configuration.md");

    /// What reads the config.
    const READERS: [&str; 4] = [
        include_str!("../../flannel-core/src/config.rs"),
        include_str!("../../flannel-backend-vxlan/src/config.rs"),
        include_str!("../../flannel-backend-udp/src/config.rs"),
        include_str!("../../flannel-backend-extension/src/config.rs"),
    ];

    /// The members that the page lists below a heading.
    fn listed(heading: &str) -> Vec<&'static str> {
        let (_, part) = PAGE.split_once(&format!("# {heading}\n")).expect("the heading");
        let part = part.split("\n#").next().unwrap_or_default();
        part.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
    }

    /// The backends that the page has a heading for.
    fn documented() -> Vec<&'static str> {
        PAGE.lines().filter_map(|line| line.strip_prefix("### ")).collect()
    }

    #[test]
    fn the_page_of_the_config_has_every_backend() {
        assert!(
            unknown("x").to_string().ends_with(&format!("has: {})", documented().join(", "))),
            "{}",
            unknown("x")
        );
    }

    #[test]
    fn every_config_that_the_page_shows_is_valid() {
        let shown: Vec<&str> =
            PAGE.split("```json\n").skip(1).filter_map(|block| block.split("```").next()).collect();
        assert!(shown.len() >= 2);
        for text in shown {
            assert!(NetworkConfig::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn every_member_on_the_page_of_the_config_is_read() {
        for member in listed("The network") {
            let text = format!(
                r#"{{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","{member}":[]}}"#
            );
            let error = NetworkConfig::parse(&text).expect_err(member);
            assert_eq!(error.field(), Some(member), "{error}");
        }
        assert_eq!(listed("The backend"), ["Type"]);
        let v4 = std::net::Ipv4Addr::new(192, 168, 64, 1);
        let external = ExternalInterface::new("lo", 1, 1500, v4);
        let backends = Backends::new(Namespace::current().expect("the namespace"), None);
        for backend in documented() {
            for member in listed(backend) {
                let text =
                    format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{backend}","{member}":[]}}}}"#);
                let config = NetworkConfig::parse(&text).expect("the backend reads it");
                let request = OpenRequest::new(&config, &external);
                let Err(BackendError::Config { reason, .. }) = backends.open(request) else {
                    panic!("{member} of {backend} is not read");
                };
                assert!(reason.contains(&format!("into {member},")), "{reason}");
            }
        }
    }

    #[test]
    fn every_member_of_the_config_that_is_read_is_on_its_page() {
        // Names of families and of backends.
        let others = ["IPv4", "IPv6", "VXLAN", "UDP"];
        let mut seen = 0;
        for source in READERS {
            let source = source.split("#[cfg(test)]").next().unwrap_or_default();
            let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                for text in line.split('"').skip(1).step_by(2) {
                    let is_name = text.starts_with(|first: char| first.is_ascii_uppercase())
                        && text.chars().all(|sign| sign.is_ascii_alphanumeric());
                    if is_name && !others.contains(&text) {
                        seen += 1;
                        assert!(PAGE.contains(&format!("\n| `{text}` | ")), "{text} is not on the page");
                    }
                }
            }
        }
        assert!(seen >= 26, "only {seen} were found");
    }

    #[test]
    fn the_port_of_the_tunnel_is_the_configured_one_or_the_backends() {
        let port = |backend: &str| {
            let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
            tunnel_port(&NetworkConfig::parse(&text).expect("valid"))
        };
        assert_eq!(port(r#"{"Type":"vxlan"}"#), Some(8472));
        assert_eq!(port(r#"{"Type":"VXLAN","port":4789}"#), Some(4789));
        assert_eq!(port(r#"{"Type":"vxlan","Port":0}"#), Some(8472));
        assert_eq!(port(r#"{"Type":"udp"}"#), Some(8285));
        assert_eq!(port(r#"{"Type":"host-gw"}"#), None);
    }
}
