//! Looks at a host, whether or not an agent runs there, and finds what is wrong, why it matters and what cures it.
//!
//! ```text
//! options ──▶ gather (reads kernel, files, registry) ──▶ Facts ──▶ checks (pure) ──▶ Findings
//! ```
//!
//! It changes nothing.

mod checks;
mod facts;
mod finding;
mod gather;
mod profile;

pub use checks::{FAULTS, examine};
pub use facts::{Certificate, ClockReading, ConfigFact, Facts, RegistryFacts, RunningAgent};
pub use finding::{Cure, Fault, Finding, Severity, quoted};
pub use gather::{read as gather, running_agents};
pub use profile::{AgentProfile, AgentRegistry, ChooseExternal, RegistryCommands};
