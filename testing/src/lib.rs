//! A laboratory of network namespaces, and contract suites, for testing flannel crates

mod capture;
pub mod contract;
mod ensure;
mod etcd;
mod fake_backend;
mod fake_table;
mod faulty;
mod lab;
mod process;
mod sys;
mod traffic;

pub use capture::packet::{
    ArpPacket, Frame, FrameContent, IcmpMessage, Ipv4Packet, Ipv6Packet, TcpSegment, Transport, UdpContent,
    UdpDatagram, VXLAN_PORTS, VxlanPacket,
};
pub use capture::{Capture, Captured};
pub use ensure::{Attempt, MissingProgram, NotInTime, eventually, program};
pub use etcd::{Etcd, EtcdError, EtcdOptions};
pub use fake_backend::{BackendCall, FakeBackend};
pub use fake_table::FakeTable;
pub use faulty::{Call, Fault, FaultyRegistry};
pub use lab::{
    Host, INTERFACE, Lab, LabError, LabOptions, Missing, Pod, UNDERLAY_IPV4, UNDERLAY_IPV6,
    check_requirements, remove_name,
};
pub use process::{NoSuchLine, Process, output_in};
pub use traffic::datagrams::{DatagramReport, datagrams};
pub use traffic::ping::{PingError, PingOptions, PingReport, RoundTrip, RunningPing, ping};
pub use traffic::stream::{Throughput, Transfer, TransferError, throughput, transfer};
