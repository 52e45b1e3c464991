//! The external interface of the daemon: chosen at the start, so that a wish that nothing can fulfil is told at once; chosen
//! again when the families of the network are known; followed from then on.

use flannel_core::{ChooseExternal, ExternalChoice, ExternalInterface, ExternalUpdate, NetworkConfig, chain};
use flannel_netlink::Namespace;
use futures::StreamExt as _;
use tracing::warn;

use super::facts::{self, Wanted};
use super::select::{self, Chosen, Facts, Families, Outcome, Wishes};
use super::settle;

/// What was chosen at the start.
#[derive(Clone, Debug)]
pub struct InitialChoice {
    pub external: ExternalInterface,
    outcome: Outcome,
    facts: Facts,
}

/// Chooses the interface before anything is known of the network. The error is a line for the log.
pub fn choose_first(wishes: &Wishes) -> Result<InitialChoice, String> {
    let facts = read(wishes)?;
    let outcome = select::choose_any(&facts, wishes);
    outcome.log(wishes, None);
    let chosen = outcome.chosen.clone().map_err(|error| error.to_string())?;
    Ok(InitialChoice { external: chosen.external, outcome, facts })
}

/// Chooses the interface for a network, or before anything is known of one, and says nothing.
pub fn look(wishes: &Wishes, config: Option<&NetworkConfig>) -> Result<ExternalInterface, String> {
    let facts = read(wishes)?;
    let outcome = match config {
        Some(config) => select::choose(&facts, wishes, Families::of(config)),
        None => select::choose_any(&facts, wishes),
    };
    outcome.chosen.map(|chosen| chosen.external).map_err(|error| error.to_string())
}

/// Returns what chooses again once the network config is known, and follows the interface from then on.
pub fn choose_again(namespace: Namespace, wishes: Wishes, first: InitialChoice) -> ChooseExternal {
    Box::new(move |config: &NetworkConfig, _| {
        let families = Families::of(config);
        let chosen = chosen(&wishes, families, &first)?;
        let choice = ExternalChoice::new(chosen.external.clone());
        let changes = settle::changes(namespace, wishes, families, chosen)
            .map_err(|error| format!("Failed to follow the interfaces: {}", chain(&error)))?;
        Ok(choice.with_changes(changes.map(ExternalUpdate::Changed).boxed()))
    })
}

fn chosen(wishes: &Wishes, families: Families, first: &InitialChoice) -> Result<Chosen, String> {
    let now = select::choose(&read(wishes)?, wishes, families);
    // Since the start the host may have lost an address for a moment.
    let then = || select::choose(&first.facts, wishes, families).chosen;
    if let (Err(error), Ok(chosen)) = (&now.chosen, then()) {
        warn!("{error}; going on with {}", chosen.external.name);
        return Ok(chosen);
    }
    now.log(wishes, Some(&first.outcome));
    now.chosen.map_err(|error| error.to_string())
}

fn read(wishes: &Wishes) -> Result<Facts, String> {
    let wanted = Wanted { default_routes: true, way_to: wishes.can_reach };
    facts::read(wanted).map_err(|error| format!("Failed to read the interfaces: {}", chain(&error)))
}
