//! A laboratory of network namespaces, and contract suites, for testing flannel crates

mod ensure;
mod etcd;
mod process;
mod sys;

pub use ensure::{Attempt, MissingProgram, NotInTime, eventually, program};
pub use etcd::{Etcd, EtcdError, EtcdOptions};
pub use process::{NoSuchLine, Process, output_in};
