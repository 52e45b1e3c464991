//! A cluster of hosts, each in its own namespace, that run `flanneld` against a real etcd.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flannel_netlink::{Link, Mac, Namespace, Netlink, NewLink, NewLinkKind, VethPeer};
use flannel_testing::{
    Directory, Etcd, EtcdOptions, Lab, LabOptions, PingOptions, Pod, Process, RunningPing, ServiceManager,
    copy_program, eventually, output_in, ping, program,
};
use ipnet::IpNet;

/// The config of most tests.
pub(crate) const VXLAN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// The same with nftables.
pub(crate) const NFTABLES: &str =
    r#"{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
/// The same with IPv4 and IPv6.
pub(crate) const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48","Backend":{"Type":"vxlan"}}"#;
/// The network with other backends.
pub(crate) const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
pub(crate) const UDP: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;

/// Long enough for a machine under load; on an idle one everything takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The address of the switch, where etcd runs: the last of the lab's first segment.
pub(crate) const SWITCH: &str = "192.168.64.254";

/// The order of the fields is the order of their drops: processes before their files.
pub(crate) struct Cluster {
    pub(crate) daemons: Vec<Option<Process>>,
    pub(crate) etcd: Etcd,
    pub(crate) lab: Lab,
    directory: Directory,
}

impl Cluster {
    /// Creates hosts and an etcd, without daemons.
    pub(crate) fn new(hosts: usize) -> Self {
        Self::with(LabOptions { hosts, ..LabOptions::default() }, EtcdOptions::default())
    }

    /// Like [`new`](Self::new), on an underlay of routed segments.
    pub(crate) fn on_segments(hosts: usize, segments: usize) -> Self {
        Self::with(LabOptions { hosts, segments, ..LabOptions::default() }, EtcdOptions::default())
    }

    /// Like [`new`](Self::new), with options for etcd.
    pub(crate) fn with_etcd(hosts: usize, options: EtcdOptions) -> Self {
        Self::with(LabOptions { hosts, ..LabOptions::default() }, options)
    }

    fn with(lab: LabOptions, etcd: EtcdOptions) -> Self {
        let (hosts, lab) = (lab.hosts, Lab::new(&lab).unwrap());
        let inside = Some((lab.switch().clone(), SWITCH.parse().unwrap()));
        let etcd = Etcd::start_with(EtcdOptions { inside, ..etcd }).unwrap();
        let daemons = (0..hosts).map(|_| None).collect();
        Self { daemons, etcd, lab, directory: Directory::new().unwrap() }
    }

    /// Creates hosts with a config and a running daemon each.
    pub(crate) fn running(hosts: usize) -> Self {
        Self::with_spare(hosts, 0)
    }

    /// Like [`running`](Self::running), with more hosts on which no daemon runs.
    pub(crate) fn with_spare(hosts: usize, spare: usize) -> Self {
        let mut cluster = Self::new(hosts + spare);
        cluster.configure(VXLAN);
        cluster.start_first(hosts, &[]);
        for host in 0..hosts {
            eventually(PATIENCE, || cluster.routes(host).len() == hosts - 1).unwrap();
        }
        cluster
    }

    /// Creates hosts with this config, and on each a daemon with these flags and a pod.
    pub(crate) fn with_pods(hosts: usize, config: &str, flags: &[&str]) -> (Self, Vec<Pod>) {
        let mut cluster = Self::new(hosts);
        cluster.configure(config);
        cluster.start_all_with(flags);
        let pods = (0..hosts).map(|host| cluster.add_pod(host)).collect();
        (cluster, pods)
    }

    /// Starts a daemon on each host.
    pub(crate) fn start_all(&mut self) {
        self.start_all_with(&[]);
    }

    /// Starts a daemon with additional flags on each host.
    pub(crate) fn start_all_with(&mut self, flags: &[&str]) {
        self.start_first(self.daemons.len(), flags);
    }

    fn start_first(&mut self, hosts: usize, flags: &[&str]) {
        (0..hosts).for_each(|host| self.start_with(host, flags));
        (0..hosts).for_each(|host| self.wait_until_ready(host));
    }

    pub(crate) fn configure(&self, config: &str) {
        self.etcd.etcdctl(&["put", "/coreos.com/network/config", config]).unwrap();
    }

    /// Returns the command of a host's daemon.
    pub(crate) fn command(&self, host: usize) -> Command {
        let mut command = self.command_without_interface(host);
        command.arg("-iface=eth0");
        command
    }

    /// Like [`command`](Self::command), without an interface.
    pub(crate) fn command_without_interface(&self, host: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
        command.arg(format!("--etcd-endpoints={}", self.etcd.client_url()));
        command.arg("-subnet-file").arg(self.subnet_file(host));
        command
    }

    /// Like [`command`](Self::command), run by the user nobody with the two capabilities that the daemon needs.
    pub(crate) fn command_of_nobody(&self, host: usize) -> Command {
        const NOBODY: u32 = 65534;
        let daemon = self.command(host);
        // The user cannot read a private build directory, nor write to root's directories.
        let program_file = self.directory.join("flanneld");
        if !program_file.exists() {
            copy_program(Path::new(daemon.get_program()), &program_file).unwrap();
        }
        let own = self.directory.join(format!("host-{host}"));
        std::fs::create_dir_all(&own).unwrap();
        std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
        let mut command = Command::new(program("setpriv", "util-linux").unwrap());
        command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()]);
        for set in ["bounding-set", "inh-caps", "ambient-caps"] {
            command.arg(format!("--{set}=-all,+net_admin,+net_raw"));
        }
        command.arg("--").arg(program_file).args(daemon.get_args());
        command
    }

    pub(crate) fn start(&mut self, host: usize) {
        self.start_as(host, self.command(host));
    }

    /// Starts a daemon with additional flags.
    pub(crate) fn start_with(&mut self, host: usize, flags: &[impl AsRef<OsStr>]) {
        let mut command = self.command(host);
        command.args(flags);
        self.start_as(host, command);
    }

    pub(crate) fn start_as(&mut self, host: usize, command: Command) {
        let namespace = &self.lab.hosts[host].namespace;
        self.daemons[host] = Some(Process::spawn_in(namespace, command).unwrap());
    }

    pub(crate) fn daemon(&mut self, host: usize) -> &mut Process {
        self.daemons[host].as_mut().unwrap()
    }

    pub(crate) fn wait_until_ready(&mut self, host: usize) {
        self.daemon(host).wait_for_line("Running backend.", PATIENCE).unwrap();
    }

    pub(crate) fn subnet_file(&self, host: usize) -> PathBuf {
        self.directory.join(format!("host-{host}/subnet.env"))
    }

    /// The path of the host's ID file.
    pub(crate) fn node_id(&self, host: usize) -> PathBuf {
        self.subnet_file(host).with_extension("env.node-id")
    }

    /// A value of the host's `subnet.env`.
    pub(crate) fn subnet_env(&self, host: usize, key: &str) -> String {
        let text = std::fs::read_to_string(self.subnet_file(host)).unwrap();
        let value =
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned));
        value.unwrap()
    }

    /// The host's subnet, from its `subnet.env`.
    pub(crate) fn subnet(&self, host: usize) -> IpNet {
        self.subnet_env(host, "FLANNEL_SUBNET").parse::<IpNet>().unwrap().trunc()
    }

    pub(crate) fn public(&self, host: usize) -> String {
        self.lab.hosts[host].ipv4().unwrap().to_string()
    }

    pub(crate) fn add_pod(&self, host: usize) -> Pod {
        let mtu = self.subnet_env(host, "FLANNEL_MTU").parse().unwrap();
        self.lab.hosts[host].add_pod(&[self.subnet(host)], mtu).unwrap()
    }

    /// A pod with an address of each family.
    pub(crate) fn add_dual_pod(&self, host: usize) -> Pod {
        let mtu = self.subnet_env(host, "FLANNEL_MTU").parse().unwrap();
        let v6 = self.subnet_env(host, "FLANNEL_IPV6_SUBNET").parse::<IpNet>().unwrap().trunc();
        self.lab.hosts[host].add_pod(&[self.subnet(host), v6], mtu).unwrap()
    }

    /// Connects a host to the first segment by one more interface.
    pub(crate) fn connect(&self, host: usize, interface: &str) {
        let port = format!("more{host}{interface}");
        let mut switch = Netlink::open_in(self.lab.switch()).unwrap();
        let namespace = Some(self.lab.hosts[host].namespace.clone());
        let peer = VethPeer { name: interface.to_owned(), mac: None, namespace };
        let master = Some(switch.link("br0").unwrap().unwrap().index);
        let link = NewLink { master, up: true, ..NewLink::new(port, NewLinkKind::Veth(peer)) };
        switch.create_link(&link).unwrap();
        self.change(host, &format!("ip link set {interface} up"));
    }

    pub(crate) fn device(&self, host: usize) -> Link {
        let mut netlink = Netlink::open_in(&self.lab.hosts[host].namespace).unwrap();
        netlink.link("flannel.1").unwrap().unwrap()
    }

    pub(crate) fn mac(&self, host: usize) -> Mac {
        self.device(host).mac.unwrap()
    }

    /// Runs a command in the host's namespace and returns its output as trimmed lines. The command may fail.
    pub(crate) fn lines(&self, host: usize, command: &str) -> Vec<String> {
        self.run(host, command).0
    }

    /// The bound UDP ports of IPv4 in the host's namespace (`/proc/net/udp`, proc_net(5)).
    pub(crate) fn udp_ports(&self, host: usize) -> Vec<u16> {
        let read = || std::fs::read_to_string("/proc/thread-self/net/udp").unwrap();
        let text = self.lab.hosts[host].namespace.run(read).unwrap();
        let port =
            |line: &str| u16::from_str_radix(line.split_whitespace().nth(1)?.split_once(':')?.1, 16).ok();
        text.lines().skip(1).filter_map(port).collect()
    }

    /// Runs `ip` or `bridge` on a host; it must succeed.
    pub(crate) fn change(&self, host: usize, command: &str) {
        let (_, complaint) = self.run(host, command);
        assert!(complaint.is_empty(), "{command}: {complaint}");
    }

    fn run(&self, host: usize, command: &str) -> (Vec<String>, String) {
        let mut words = command.split_whitespace();
        let program =
            program(if command.starts_with("bridge") { "bridge" } else { "ip" }, "iproute2").unwrap();
        let mut command = Command::new(program);
        words.next();
        command.args(words);
        let output = output_in(&self.lab.hosts[host].namespace, command).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| line.trim().to_owned()).collect();
        (lines, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Runs a shell command on a host; it must succeed.
    pub(crate) fn shell(&self, host: usize, line: &str) -> String {
        shell_in(&self.lab.hosts[host].namespace, line)
    }

    /// Runs a shell command on the switch, where etcd runs; it must succeed.
    pub(crate) fn shell_on_switch(&self, line: &str) -> String {
        shell_in(self.lab.switch(), line)
    }

    /// The switch's device with etcd's address.
    pub(crate) fn switch_device(&self) -> String {
        let text = self.shell_on_switch(&format!("ip -o -4 addr show to {SWITCH}"));
        text.split_whitespace().nth(1).unwrap().to_owned()
    }

    /// The host's routes through the tunnel, as `ip route` shows them.
    pub(crate) fn routes(&self, host: usize) -> Vec<String> {
        self.lines(host, "ip route").into_iter().filter(|line| line.contains("flannel.1")).collect()
    }

    /// The host's routes, neighbours and FDB entries for its peers, as `ip` and `bridge` show them.
    pub(crate) fn tunnel(&self, host: usize) -> Vec<String> {
        let neighbours = self.lines(host, "ip -4 neigh show nud permanent dev flannel.1");
        let entries = self.lines(host, "bridge fdb show dev flannel.1");
        [self.routes(host), neighbours, entries].into_iter().map(sorted).collect::<Vec<_>>().concat()
    }

    /// Runs `etcdctl` with the v2 API and returns its output.
    pub(crate) fn etcdctl_v2(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(program("etcdctl", "etcd-client").unwrap());
        command.env("ETCDCTL_API", "2").arg("--endpoints").arg(self.etcd.client_url()).args(arguments);
        let output = output_in(self.lab.switch(), command).unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The leases in the registry, as key and record.
    pub(crate) fn leases(&self) -> Vec<(String, String)> {
        let text = self.etcd.etcdctl(&["get", "--prefix", "/coreos.com/network/subnets/"]).unwrap();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }
}

fn shell_in(namespace: &Namespace, line: &str) -> String {
    for (used, package) in [("ip", "iproute2"), ("nft", "nftables"), ("iptables", "iptables")] {
        program(used, package).unwrap();
    }
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    let output = output_in(namespace, command).unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

/// A service manager that starts a daemon and collects its notifications in the background: the kernel queues only ten
/// messages, and the daemon gives up soon.
pub(crate) struct Notifications {
    manager: ServiceManager,
    seen: usize,
}

impl Notifications {
    pub(crate) fn new() -> Self {
        Self { manager: ServiceManager::new(0).unwrap(), seen: 0 }
    }

    /// Starts the daemon of a host.
    pub(crate) fn start(&self, cluster: &mut Cluster, host: usize, command: &Command) {
        let namespace = &cluster.lab.hosts[host].namespace;
        cluster.daemons[host] = Some(self.manager.start(namespace, command).unwrap());
    }

    /// Waits for the next notification with this prefix after the previous call, and returns it.
    pub(crate) fn wait_for(&mut self, prefix: &str) -> String {
        let found = eventually(PATIENCE, || {
            let messages = self.manager.messages();
            let next = (self.seen..messages.len()).find(|at| messages[*at].starts_with(prefix));
            next.map(|at| (at, messages[at].clone())).ok_or_else(|| format!("{prefix:?} in {messages:#?}"))
        });
        let (at, message) = found.unwrap();
        self.seen = at + 1;
        message
    }
}

/// For a packet that may remain unanswered.
pub(crate) fn quick() -> PingOptions {
    PingOptions { timeout: Duration::from_millis(300), ..PingOptions::default() }
}

/// Pings every 5 ms, and returns once the first packets are answered.
pub(crate) fn running_ping(from: &Pod, to: &Pod) -> RunningPing {
    let every = Duration::from_millis(5);
    let ping = RunningPing::start(&from.namespace, to.addresses[0], every, &PingOptions::default()).unwrap();
    ping.wait_for_replies(20, PATIENCE).unwrap();
    ping
}

/// Waits for more replies to each ping, so that an earlier change could have broken it.
pub(crate) fn wait_for_replies(pings: &[RunningPing], more: u64) {
    pings.iter().for_each(|ping| ping.wait_for_replies(more, PATIENCE).unwrap());
}

/// Checks that one pod reaches another.
pub(crate) fn check_ping(from: &Pod, to: &Pod) {
    let to: IpAddr = to.addresses[0];
    let answered = eventually(PATIENCE, || ping(&from.namespace, to, &PingOptions::default()));
    answered.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name));
}
