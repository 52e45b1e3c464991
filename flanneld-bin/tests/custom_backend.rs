//! A program with a backend of its own: every part of `flanneld` knows the backend from its registration.
//!
//! The test program runs itself as that `flanneld`, hence it has no test harness.

use std::env;
use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::time::Duration;

use flannel_backend_extension::OpenAlloc;
use flannel_core::{
    Backend, BackendDescriptor, BackendError, NetworkConfig, OpenBackend, OpenRequest, Plan, PlanRequest,
    PlannedChange, TunnelPort,
};
use flannel_netlink::Namespace;
use flannel_testing::{Directory, Etcd, EtcdOptions, Lab, LabOptions, Process, eventually, output_in};

/// The variable that turns the test program into `flanneld`.
const AS_FLANNELD: &str = "CUSTOM_BACKEND_AS_FLANNELD";

const PATIENCE: Duration = Duration::from_secs(60);

/// A backend that creates nothing, and always plans to create one object.
struct OpenToy;

impl OpenBackend for OpenToy {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let mut config = request.config.clone();
        config.backend.name = "alloc".to_owned();
        OpenAlloc.open(OpenRequest::new(&config, request.external))
    }

    fn plan(&self, _: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let mut plan = Plan::default();
        plan.changes.push(PlannedChange::put("toy object", None));
        Ok(plan)
    }
}

impl BackendDescriptor for OpenToy {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn tunnel_ports(&self, config: &NetworkConfig) -> Vec<TunnelPort> {
        vec![TunnelPort::udp(5555, config.families())]
    }
}

fn main() -> ExitCode {
    if env::var_os(AS_FLANNELD).is_some() {
        return flanneld::run(env::args_os(), |namespace| flanneld::backends(namespace).with(OpenToy));
    }
    if env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    every_part_of_the_program_knows_a_registered_backend();
    ExitCode::SUCCESS
}

/// Returns a command that runs this program as `flanneld`.
fn flanneld<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env::current_exe().expect("the test program"));
    command.env(AS_FLANNELD, "1").args(arguments.into_iter().map(Into::into));
    command
}

fn every_part_of_the_program_knows_a_registered_backend() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).expect("a lab");
    let inside = Some((lab.switch().clone(), "192.168.64.254".parse().expect("an address")));
    let etcd = Etcd::start_with(EtcdOptions { inside, ..EtcdOptions::default() }).expect("etcd");
    let config = r#"{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"Toy"}}"#;
    etcd.etcdctl(&["put", "/coreos.com/network/config", config]).expect("written");
    let (host, files) = (&lab.hosts[0].namespace, Directory::new().expect("a directory"));
    let flags = [
        format!("-etcd-endpoints={}", etcd.client_url()),
        format!("-subnet-file={}", files.join("subnet.env").display()),
        "-iface=eth0".to_owned(),
        "-restrict-tunnel-port".to_owned(),
    ];
    let run = |command: &str, more: &[&str]| {
        let arguments = [command].into_iter().chain(more.iter().copied()).map(str::to_owned);
        let output = output_in(host, flanneld(arguments.chain(flags.iter().cloned()))).expect("it runs");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let usage = run("-help", &[]);
    assert!(usage.contains("alloc, toy\n"), "{usage}");

    let daemon = Process::spawn_in(host, flanneld(flags.clone())).expect("it starts");
    daemon.wait_for_line("Running backend.", PATIENCE).expect("it carries traffic");
    let port_table = || tables(host).contains("flannel-port-5555").then_some(()).ok_or_else(|| tables(host));
    eventually(PATIENCE, port_table).expect("the tunnel port is restricted");

    let subnet_file = format!("-subnet-file={}", files.join("subnet.env").display());
    let status = output_in(host, flanneld(["status", "-json", &subnet_file])).expect("it runs");
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("json");
    assert_eq!(status["network"]["backend"], "Toy", "{status}");
    let plan = run("plan", &[]);
    assert!(plan.contains("+ toy object\n"), "{plan}");
    let findings = run("doctor", &[]);
    assert!(findings.contains("objects-missing") && findings.contains("toy object"), "{findings}");
}

/// Lists the nftables tables of a host.
fn tables(host: &Namespace) -> String {
    let mut command = Command::new("nft");
    command.args(["list", "tables"]);
    let output = output_in(host, command).expect("nft runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
