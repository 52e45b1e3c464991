//! What the two interfaces of etcd have in common.
//!
//! | part | what it does |
//! |---|---|
//! | `names` | names the keys of a network (pure) |
//! | `position` | tells whether one store leads on where another one was left (pure) |
//! | `teller` | keeps what a watch has to tell, and its pauses (pure) |
//! | `turn` | says which member is to be asked |

mod names;
mod position;
mod teller;
mod turn;

pub(crate) use names::Names;
pub(crate) use position::{LastCluster, Position};
pub(crate) use teller::Teller;
pub(crate) use turn::Turn;
