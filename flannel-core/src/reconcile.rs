//! Reconciles one kind of kernel object.
//!
//! ```text
//!  desired state ──set / unset_desired──▶ ┌─────────┐ ──missing──▶  put    ┐
//!                                         │ Tracker │                       ├─▶ Table::apply ─▶ a result per object
//!  actual state  ──observe──────────────▶ └─────────┘ ──unwanted──▶ drop   ┘         │
//!        ▲                                     ▲──────────── settle ◀────────────────┘
//!   Table::read, if stale
//! ```
//!
//! The [`Tracker`] decides and has no side effects; the [`Table`] reads and writes and decides nothing; a [`Reconciler`]
//! owns one of each. The tracker holds the desired and the actual state of each object, so a change of one object costs
//! work for one object, and uncertainty costs one read.

mod pass;
mod reconciler;
mod table;
mod tracker;

pub use pass::{TableSync, pass};
pub use reconciler::Reconciler;
pub use table::{Change, Table};
pub use tracker::Tracker;
