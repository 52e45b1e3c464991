//! An overlay network for container hosts: types, traits, decisions and the node loop
