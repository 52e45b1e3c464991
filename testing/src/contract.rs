//! What every implementation of a seam must keep, as tests that any of them can run.

pub mod backend;
pub mod manager;
pub mod registry;
pub mod table;
