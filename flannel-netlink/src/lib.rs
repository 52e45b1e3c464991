//! Links, addresses, routes, neighbours and forwarding entries of Linux, over netlink
