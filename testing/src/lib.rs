//! A laboratory for testing flannel crates on the real kernel: hosts as network namespaces, traffic between
//! them, captures of it, a real etcd, and programs that run inside.
//!
//! * [`Lab`] sets up hosts and pods; [`check_requirements`] says what a machine lacks for that.
//! * [`ping`], [`RunningPing`], [`transfer`], [`datagrams`] and [`throughput`] make traffic and check it.
//! * [`Capture`] reads packets back from a link as typed values ([`Frame`]).
//! * [`Etcd`] is a server that a test can stop, kill, freeze and restart.
//! * [`PlainProxy`] is a host with upstream flannel's `udp` backend, as others see it.
//! * [`Process`] is a program inside a namespace, [`Member`] a network on a thread of this process.
//! * [`ServiceManager`] starts a program as systemd does, and keeps its descriptors over a restart.
//! * [`OverlayState`] is all that the kernel holds of an overlay on one host.
//! * [`Wire`] is a link that loses packets and delivers some late.
//! * [`with_capabilities()`] takes rights away from a part of a test.
//! * [`BackendHarness`] drives a backend step by step.
//! * [`sim`] runs whole clusters on a paused clock, with faults drawn from a seed.
//! * [`Directory`] is a place for files that goes with its handle.
//! * [`eventually`] waits for what becomes true, [`program`] for nothing: it tells how to install what is
//!   missing.
//!
//! Everything works from inside one process with the rights of root, without `ip`, `ping` or a capture
//! program; only `etcd` has to be installed. Whatever is dropped is gone; if the process is killed, the
//! kernel removes the rest.
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
pub use faulty::{Call, Fault, FaultyRegistry};
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

/// The README's examples, so that they run as long as they stand there.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
