//! Words for the log.

use flannel_core::SubnetKey;

/// Writes the subnets of a host as upstream flannel does: separated by a blank.
pub(crate) fn subnets(key: &SubnetKey) -> String {
    let nets: Vec<String> = key.nets().map(|net| net.to_string()).collect();
    nets.join(" ")
}
