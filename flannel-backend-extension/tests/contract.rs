//! The contract suite of backends, run on `extension` and `alloc`.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use flannel_backend_extension::{OpenAlloc, OpenExtension};
use flannel_backend_vxlan::external_interface;
use flannel_core::{
    BackendAttrs, ExternalInterface, Json, LeaseAttrs, NetworkConfig, OpenBackend, SubnetKey,
};
use flannel_netlink::{Namespace, Netlink, Route, WriteRequest};
use flannel_testing::contract::backend::{BackendSubject, kernel_objects};
use flannel_testing::{Directory, Lab, LabOptions};

/// A lab host, and a directory in which the commands write one file per peer.
struct Host {
    lab: Lab,
    directory: Directory,
    backend: &'static str,
}

impl Host {
    fn new(backend: &'static str) -> Self {
        let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
        Self { lab, directory: Directory::new().unwrap(), backend }
    }

    fn namespace(&self) -> &Namespace {
        &self.lab.hosts[0].namespace
    }

    /// Returns the name and text of each file.
    fn files(&self) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        let read = entries.filter_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name()?.to_str()?.to_owned();
            // A command may remove the file at this moment.
            Some((name, std::fs::read_to_string(path).ok()?))
        });
        read.collect()
    }

    fn obstacle(&self, subnet: SubnetKey) -> PathBuf {
        self.directory.join(format!("not-{subnet}"))
    }
}

impl BackendSubject for Host {
    fn opener(&self) -> Box<dyn OpenBackend> {
        match self.backend {
            "alloc" => Box::new(OpenAlloc),
            _ => Box::new(OpenExtension::new(self.namespace().clone())),
        }
    }

    fn config(&self) -> NetworkConfig {
        // A rename makes the peer's file appear with its content.
        let add =
            r#"f=$(echo $SUBNET | tr / -); test ! -e not-$f && echo $PUBLIC_IP >new-$f && mv new-$f peer-$f"#;
        let remove = r#"rm -f peer-$(echo $SUBNET | tr / -)"#;
        let command = |script: &str| {
            let script = format!("cd {} && {script}", self.directory.path().display());
            format!("{script:?}")
        };
        let (add, remove) = (command(add), command(remove));
        let (up, down) = (command("touch device"), command("rm device"));
        let text = format!(
            r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{}","PreStartupCommand":"echo word",
               "PostStartupCommand":{up},"ShutdownCommand":{down},
               "SubnetAddCommand":{add},"SubnetRemoveCommand":{remove}}}}}"#,
            self.backend
        );
        NetworkConfig::parse(&text).unwrap()
    }

    fn external(&self) -> ExternalInterface {
        external_interface(self.namespace(), "eth0").unwrap()
    }

    fn peer(&self, _: u8, public: Ipv4Addr) -> LeaseAttrs {
        if !self.carries_traffic() {
            return LeaseAttrs::new(public.into());
        }
        let attrs = BackendAttrs::new(self.backend.to_owned().into());
        attrs.with_data(Json::parse(r#""word""#).ok()).at(public.into())
    }

    fn unreachable_peer(&self, public: Ipv4Addr) -> Option<LeaseAttrs> {
        self.carries_traffic().then(|| LeaseAttrs::new(public.into()))
    }

    fn peer_destinations(&self) -> BTreeMap<SubnetKey, IpAddr> {
        let files = self.files();
        let peers = files.iter().filter_map(|(name, text)| Some((name.strip_prefix("peer-")?, text)));
        peers.map(|(name, text)| (name.parse().unwrap(), text.trim().parse().unwrap())).collect()
    }

    fn objects(&self) -> Vec<String> {
        let mut objects = kernel_objects(self.namespace()).unwrap();
        let files = self.files().into_iter().filter(|(name, _)| !name.starts_with("new-"));
        objects.extend(files.map(|(name, text)| format!("file {name} {text}")));
        objects
    }

    fn add_foreign_objects(&self) {
        let mut netlink = Netlink::open_in(self.namespace()).unwrap();
        let route = Route::by_gateway("10.5.99.0/24".parse().unwrap(), "192.168.64.254".parse().unwrap());
        assert!(netlink.apply(&[WriteRequest::PutRoute(route)]).iter().all(Result::is_ok));
        std::fs::write(self.directory.join("foreign"), "10.5.99.0/24").unwrap();
    }

    fn block(&self, subnet: SubnetKey) {
        std::fs::write(self.obstacle(subnet), "").unwrap();
    }

    fn unblock(&self, subnet: SubnetKey) {
        std::fs::remove_file(self.obstacle(subnet)).unwrap();
    }

    fn invalid_options(&self) -> Vec<(&'static str, &'static str)> {
        if !self.carries_traffic() {
            return Vec::new();
        }
        vec![
            (r#"{"Type":"extension","SubnetAddCommand":["ip"]}"#, "SubnetAddCommand"),
            (r#"{"Type":"extension","CommandTimeout":0}"#, "CommandTimeout"),
        ]
    }

    fn carries_traffic(&self) -> bool {
        self.backend == "extension"
    }

    /// It cannot look at what commands made.
    fn adopts(&self) -> bool {
        false
    }

    /// Commands run beside the passes.
    fn patience(&self) -> Duration {
        if self.carries_traffic() { Duration::from_secs(30) } else { Duration::ZERO }
    }
}

mod of_extension {
    flannel_testing::backend_contract!(super::Host::new("extension"), skip: {
        adopts = "a backend cannot inspect what earlier commands did",
        devices = "devices, if any, are the commands' own",
        other_options = "other commands need a restart: those that started the host must stop it",
        plan = "commands have no dry run",
        traffic = "commands report no counters",
        undo = "a backend cannot observe what commands did",
    });
}

mod of_alloc {
    flannel_testing::backend_contract!(super::Host::new("alloc"), skip: {
        adopts = "it creates no objects",
        block = "it writes nothing",
        devices = "it creates no device",
        invalid_options = "it has no options",
        other_options = "it has no options",
        plan = "it writes nothing",
        traffic = "it carries no traffic",
        undo = "it creates no objects",
        unreachable_peer = "it sends to no peer, so no peer is unreachable",
    });
}
