//! flanneld: the daemon that runs a flannel network on one host.

fn main() {}
