//! The external interface of the daemon: chosen at the start, so that a wish that nothing can fulfil is told at once; chosen
//! again when the families of the network are known; followed from then on.

use flannel_core::{ChooseExternal, ExternalInterface, NetworkConfig, chain};
use flannel_netlink::Namespace;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::oneshot;
use tracing::warn;

use crate::facts::{self, Wanted};
use crate::follow;
use crate::iface::{self, Chosen, Facts, Families, Outcome, Wishes};

/// Chooses the interface before anything is known of the network. The error is a line for the log.
pub(crate) fn choose_first(wishes: &Wishes) -> Result<(ExternalInterface, Outcome), String> {
    let outcome = iface::choose_any(&read(wishes)?, wishes);
    outcome.tell(wishes, None);
    let chosen = outcome.chosen.clone().map_err(|error| error.to_string())?;
    Ok((chosen.external, outcome))
}

/// Chooses the interface for a network, or before anything is known of one, and says nothing.
pub(crate) fn look(wishes: &Wishes, config: Option<&NetworkConfig>) -> Result<ExternalInterface, String> {
    let facts = read(wishes)?;
    let outcome = match config {
        Some(config) => {
            let families = Families { v4: config.ipv4.is_some(), v6: config.ipv6.is_some() };
            iface::choose(&facts, wishes, families)
        }
        None => iface::choose_any(&facts, wishes),
    };
    outcome.chosen.map(|chosen| chosen.external).map_err(|error| error.to_string())
}

/// Gives who chooses again, and what becomes of the interface from then on.
pub(crate) fn choose_again(
    namespace: Namespace,
    wishes: Wishes,
    first: Outcome,
) -> (ChooseExternal, BoxStream<'static, ExternalInterface>) {
    let (tell, told) = oneshot::channel();
    let choose = Box::new(move |config: &NetworkConfig| {
        let families = Families::of(config);
        let chosen = chosen(&wishes, families, &first)?;
        let external = chosen.external.clone();
        let changes = follow::changes(namespace, wishes, families, chosen)
            .map_err(|error| format!("Failed to follow the interfaces: {}", chain(&error)))?;
        // Nobody listens any more only if the network has ended.
        let _ = tell.send(changes);
        Ok(external)
    });
    let changes = stream::once(async { told.await.unwrap_or_else(|_| stream::pending().boxed()) });
    (choose, changes.flatten().boxed())
}

/// Chooses the interface for a network, as the daemon does, for those who only look.
pub(crate) fn choose_for(wishes: &Wishes, config: &NetworkConfig) -> Result<ExternalInterface, String> {
    let chosen = iface::choose(&read(wishes)?, wishes, Families::of(config)).chosen;
    chosen.map(|chosen| chosen.external).map_err(|error| error.to_string())
}

fn chosen(wishes: &Wishes, families: Families, first: &Outcome) -> Result<Chosen, String> {
    let outcome = iface::choose(&read(wishes)?, wishes, families);
    outcome.tell(wishes, Some(first));
    match (outcome.chosen, &first.chosen) {
        (Ok(chosen), _) => Ok(chosen),
        // It may have lost its address for a moment, since it was chosen.
        (Err(error), Ok(chosen)) if has(&chosen.external, families) => {
            warn!("{error}; going on with {}", chosen.external.name);
            Ok(chosen.clone())
        }
        (Err(error), _) => Err(error.to_string()),
    }
}

fn has(external: &ExternalInterface, families: Families) -> bool {
    (external.v4.is_some() || !families.v4) && (external.v6.is_some() || !families.v6)
}

fn read(wishes: &Wishes) -> Result<Facts, String> {
    let wanted = Wanted { default_routes: true, way_to: wishes.can_reach };
    facts::read(wanted).map_err(|error| format!("Failed to read the interfaces: {}", chain(&error)))
}
