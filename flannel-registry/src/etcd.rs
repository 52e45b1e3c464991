//! What the clients of etcd's v2 and v3 interfaces share.
//!
//! | module | contents |
//! |---|---|
//! | `certificate_dates` | validity of the certificates in a file |
//! | `config_revision` | the revision at which the network config was last read |
//! | `connection_epoch` | counter that invalidates connections when the host's addresses change |
//! | `contact_tracker` | time and revision of etcd's last response |
//! | `endpoint_picker` | endpoints, and the member to ask first |
//! | `event_queue` | events that a watch has yet to yield, and its backoff (pure) |
//! | `key_layout` | keys of a network (pure) |
//! | `member_errors` | errors of the members that were asked during one call |
//! | `position` | point in the history of a store (pure) |
//! | `tls_files` | certificate files |

mod certificate_dates;
mod config_revision;
mod connection_epoch;
mod contact_tracker;
mod endpoint_picker;
mod event_queue;
mod key_layout;
mod member_errors;
mod position;
mod tls_files;

pub use certificate_dates::{CertificateDates, certificate_dates};
pub(crate) use config_revision::ConfigRevision;
pub(crate) use connection_epoch::ConnectionEpoch;
pub(crate) use contact_tracker::ContactTracker;
pub(crate) use endpoint_picker::{EndpointError, EndpointPicker};
pub(crate) use event_queue::EventQueue;
pub(crate) use key_layout::KeyLayout;
pub(crate) use member_errors::MemberErrors;
pub(crate) use position::{LastClusterId, Position};
#[cfg(feature = "etcd-v3")]
pub(crate) use tls_files::FileStamp;
#[cfg(feature = "etcd-v2")]
pub(crate) use tls_files::read_certificates;
pub(crate) use tls_files::{FileError, TlsFiles, UnpairedKey};
