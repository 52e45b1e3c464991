//! `flannel`, the CNI plugin as a program.

use std::process::ExitCode;

fn main() -> ExitCode {
    flannel_cni::run_from_environment()
}
