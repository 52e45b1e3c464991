//! A laboratory of network namespaces, and contract suites, for testing flannel crates

pub mod contract;
mod faulty;

pub use faulty::{Call, Fault, FaultyRegistry};
