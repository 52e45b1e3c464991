//! What the two interfaces of etcd have in common.
//!
//! | part | what it does |
//! |---|---|
//! | `config_read` | notes up to where the configuration is known |
//! | `files` | reads the certificates |
//! | `dates` | tells from when until when they are good |
//! | `moves` | counts how often this host moved |
//! | `names` | names the keys of a network (pure) |
//! | `position` | tells whether one store leads on where another one was left (pure) |
//! | `teller` | keeps what a watch has to tell, and its pauses (pure) |
//! | `turn` | says which member is to be asked |
//! | `word` | notes when etcd was heard |

mod config_read;
mod dates;
mod files;
mod moves;
mod names;
mod position;
mod teller;
mod turn;
mod word;

pub(crate) use config_read::ConfigRead;
pub use dates::{CertificateDates, certificate_dates};
#[cfg(feature = "etcd-v3")]
pub(crate) use files::Stamp;
pub(crate) use files::certificates;
pub(crate) use files::{FileError, Files, IncompleteKeyPair};
pub(crate) use moves::Moves;
pub(crate) use names::Names;
pub(crate) use position::{LastCluster, Position};
pub(crate) use teller::Teller;
pub(crate) use turn::Turn;
pub(crate) use word::Word;
