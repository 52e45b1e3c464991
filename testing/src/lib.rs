//! A laboratory for testing flannel crates on the real kernel, and contract suites, fakes and a simulation for testing
//! without it.
//!
//! * [`Lab`] creates hosts and pods as network namespaces; [`check_requirements`] lists what a machine lacks for that.
//! * [`ping`], [`RunningPing`], [`transfer`], [`datagrams`] and [`throughput`] generate and check traffic.
//! * [`Capture`] reads packets from a link as typed values ([`Frame`]).
//! * [`Etcd`] is a server that a test can stop, kill, freeze and restart.
//! * [`PlainProxy`] behaves like a host with upstream flannel's `udp` backend.
//! * [`Process`] is a program inside a namespace, [`Member`] a network on a thread of this process.
//! * [`ServiceManager`] starts a program as systemd does and stores its descriptors across restarts.
//! * [`OverlayState`] contains the kernel objects of an overlay on a host.
//! * [`Wire`] is a link that drops and delays packets.
//! * [`with_capabilities()`] runs a part of a test with fewer capabilities.
//! * [`BackendHarness`] drives a backend step by step.
//! * [`contract`] checks implementations of the traits of [flannel-core](flannel_core).
//! * [`sim`] runs whole clusters on a paused clock, with faults drawn from a seed.
//! * [`Directory`] is removed with its handle; [`eventually`] waits for a condition; [`program`] finds an installed
//!   program or names the command that installs it.
//!
//! The laboratory needs Linux and root, and no `ip`, `ping` or capture program; only `etcd` has to be installed.
//! Handles remove what they created when they are dropped; if the process is killed, the kernel removes the rest.
//!
//! ```no_run
//! use flannel_testing::{Capture, Lab, LabOptions, PingOptions, ping};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let lab = Lab::new(&LabOptions { hosts: 2, ..LabOptions::default() })?;
//! let pod = lab.hosts[0].add_pod(&["10.5.3.0/24".parse()?], 1450)?;
//! let capture = Capture::start(&pod.namespace, "eth0")?;
//! let time = ping(&pod.namespace, lab.hosts[0].addresses[0].addr(), &PingOptions::default())?;
//! println!("the host answered its pod after {time:?}");
//! for packet in capture.stop()? {
//!     println!("{packet}");
//! }
//! # Ok(())
//! # }
//! ```

mod capture;
pub mod contract;
mod directory;
mod ensure;
mod etcd;
mod fake_backend;
mod fake_table;
mod faulty;
pub mod harness;
mod lab;
mod member;
mod overlay_state;
mod plain_proxy;
mod process;
mod program_file;
mod service_manager;
pub mod sim;
mod sys;
mod traffic;
mod wire;
mod with_capabilities;

pub use capture::packet::{
    ArpPacket, Frame, FrameContent, IcmpMessage, Ipv4Packet, Ipv6Packet, TcpSegment, Transport, UdpContent,
    UdpDatagram, VXLAN_PORTS, VxlanPacket,
};
pub use capture::{Capture, Captured};
pub use directory::Directory;
pub use ensure::{Attempt, DeadlineExceeded, MissingProgram, eventually, program};
pub use etcd::{Etcd, EtcdError, EtcdOptions, EtcdTls, random_loopback_address};
pub use fake_backend::{BackendCall, FakeBackend};
pub use fake_table::FakeTable;
pub use faulty::{Call, FaultyRegistry, InjectedFault};
pub use harness::BackendHarness;
pub use lab::{
    Host, INTERFACE, Lab, LabError, LabOptions, Missing, Pod, UNDERLAY_IPV4, UNDERLAY_IPV6,
    check_requirements, remove_name,
};
pub use member::Member;
pub use overlay_state::{DeviceState, OverlayState};
pub use plain_proxy::{PlainProxy, PlainProxyOptions};
pub use process::{LineNotFound, Process, output_in};
pub use program_file::{copy_program, write_program};
pub use service_manager::ServiceManager;
pub use traffic::datagrams::{DatagramReport, datagrams, datagrams_in_flight};
pub use traffic::ping::{PingError, PingOptions, PingReport, RoundTrip, RunningPing, ping};
pub use traffic::stream::{Throughput, Transfer, TransferError, throughput, transfer};
pub use wire::{Wire, WireOptions};
pub use with_capabilities::{CAP_NET_ADMIN, CAP_SYS_ADMIN, with_capabilities};

/// The README's examples, run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
