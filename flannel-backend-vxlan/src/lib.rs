//! The VXLAN backend of flannel: a kernel tunnel device and three tables kept in order
