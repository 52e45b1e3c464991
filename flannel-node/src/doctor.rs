//! Finds faults of a host, with their effects and fixes, whether or not an agent runs there.
//!
//! ```text
//! options ──▶ gather (reads kernel, files, registry) ──▶ Facts ──▶ checks (pure) ──▶ Findings
//! ```
//!
//! Doctor changes nothing.

mod checks;
mod facts;
mod finding;
mod gather;
mod profile;

pub use checks::{FAULTS, examine};
pub use facts::{Certificate, ClockReading, ConfigFact, Facts, RegistryFacts, RunningAgent};
pub use finding::{Cure, Fault, Finding, Severity, quoted};
pub use gather::{read as gather, running_agents};
pub use profile::{AgentProfile, AgentRegistry, ExternalLookup, RegistryCommands};
