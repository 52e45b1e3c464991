//! Containers that a runtime attaches through the CNI plugin and the reference plugins, on hosts that run flanneld.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use flannel_cni::Parameters;
use flannel_netlink::{Namespace, Netlink};
use flannel_testing::{PingOptions, eventually, ping};
use serde_json::Value;

use crate::cluster::{Cluster, DUAL, PATIENCE};

/// Where Debian puts the reference plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// A container runtime on one host that runs the plugin in this process.
struct Runtime<'a> {
    cluster: &'a Cluster,
    host: usize,
    directory: PathBuf,
}

impl<'a> Runtime<'a> {
    fn new(cluster: &'a Cluster, host: usize) -> Self {
        assert!(
            Path::new(PLUGINS).join("bridge").exists(),
            "there is no {PLUGINS}/bridge: apt-get install containernetworking-plugins"
        );
        let directory = cluster.subnet_file(host).with_file_name("cni");
        fs::create_dir_all(&directory).unwrap();
        Self { cluster, host, directory }
    }

    /// A typical entry of a configuration list, with the test's files and the runtime's members.
    fn conf(&self, previous: Option<&Value>) -> String {
        let mut conf = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "cbr0",
            "type": "flannel",
            "subnetFile": self.cluster.subnet_file(self.host),
            "dataDir": self.directory.join("states"),
            "ipam": { "dataDir": self.directory.join("addresses") },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true, "ipMasq": false },
        });
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        conf.to_string()
    }

    /// Runs the plugin on the host and returns its result or its error object.
    fn run(&self, command: &str, container: &Namespace, previous: Option<&Value>) -> Result<Value, Value> {
        let descriptor = container.as_fd().as_raw_fd();
        let parameters = Parameters {
            command: command.to_owned(),
            container_id: "box".to_owned(),
            netns: format!("/proc/{}/fd/{descriptor}", std::process::id()).into(),
            ifname: "eth0".to_owned(),
            path: PLUGINS.into(),
            netns_override: false,
        };
        let conf = self.conf(previous);
        let host = &self.cluster.lab.hosts[self.host].namespace;
        let json = |text: &[u8]| serde_json::from_slice(text).unwrap();
        match host.run(|| flannel_cni::run(&parameters, conf.as_bytes())).unwrap() {
            Ok(text) if text.is_empty() => Ok(Value::Null),
            Ok(text) => Ok(json(&text)),
            Err(error) => Err(json(error.to_json().as_bytes())),
        }
    }

    /// The states and leased addresses of containers.
    fn leftovers(&self) -> Vec<String> {
        let names = |directory: PathBuf| {
            let entries = fs::read_dir(directory).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let addresses = names(self.directory.join("addresses/cbr0"));
        // Internal files of `host-local`.
        let addresses =
            addresses.into_iter().filter(|name| name != "lock" && !name.starts_with("last_reserved"));
        names(self.directory.join("states")).into_iter().chain(addresses).collect()
    }
}

/// The addresses in a result.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let address = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    result["ips"].as_array().unwrap().iter().map(address).collect()
}

#[test]
fn containers_of_two_hosts_reach_each_other_and_leave_nothing_behind() {
    let mut cluster = Cluster::new(2);
    cluster.configure(DUAL);
    cluster.start_all();
    let runtimes = [0, 1].map(|host| Runtime::new(&cluster, host));
    let containers = [0, 1].map(|_| Namespace::create().unwrap());
    let results = [0, 1].map(|i| runtimes[i].run("ADD", &containers[i], None).unwrap());
    for (host, result) in results.iter().enumerate() {
        let (addresses, subnet) = (addresses(result), cluster.subnet(host));
        assert_eq!(addresses.len(), 2, "{result}");
        assert!(subnet.contains(&addresses[0]), "{result}");
        let mtu = Netlink::open_in(&containers[host]).unwrap().link("eth0").unwrap().unwrap().mtu;
        assert_eq!(mtu.to_string(), cluster.subnet_env(host, "FLANNEL_MTU"));
    }
    for to in addresses(&results[1]) {
        let answered = eventually(PATIENCE, || ping(&containers[0], to, &PingOptions::default()));
        answered.unwrap_or_else(|error| panic!("to {to}: {error}"));
    }

    for i in [0, 1] {
        assert_eq!(runtimes[i].run("CHECK", &containers[i], Some(&results[i])), Ok(Value::Null));
        assert!(!runtimes[i].leftovers().is_empty());
    }
    // CHECK detects a removed interface.
    let mut netlink = Netlink::open_in(&containers[0]).unwrap();
    let link = netlink.link("eth0").unwrap().unwrap().index;
    netlink.delete_link(link).unwrap();
    let error = runtimes[0].run("CHECK", &containers[0], Some(&results[0])).unwrap_err();
    assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{error}");

    for i in [0, 1] {
        assert_eq!(runtimes[i].run("DEL", &containers[i], None), Ok(Value::Null));
        assert_eq!(runtimes[i].run("DEL", &containers[i], None), Ok(Value::Null), "again");
        assert_eq!(runtimes[i].leftovers(), [""; 0]);
        assert_eq!(Netlink::open_in(&containers[i]).unwrap().link("eth0").unwrap(), None);
    }
    let error = runtimes[1].run("CHECK", &containers[1], Some(&results[1])).unwrap_err();
    assert_eq!(error["code"], 3);
}
