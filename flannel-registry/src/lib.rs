//! Where flannel keeps its leases: in memory or in etcd
