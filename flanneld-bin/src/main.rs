//! `flanneld`: the daemon that runs a flannel network on one host.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    flanneld::run(env::args_os(), flanneld::backends)
}
