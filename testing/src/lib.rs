//! A laboratory of network namespaces, and contract suites, for testing flannel crates

pub mod contract;
mod fake_backend;
mod faulty;

pub use fake_backend::{BackendCall, FakeBackend};
pub use faulty::{Call, Fault, FaultyRegistry};
