//! What is kept of each attachment between ADD and DEL: the bytes of the delegate's configuration.
//!
//! A file is named by container, network and interface, so that two attachments of one container do not share one. Beside
//! it stands the name that upstream's plugin looks for, the container's alone, as a hard link: after a change from one
//! plugin to the other, in either direction, each finds what the other has left.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use flannel_registry::write_whole;
use serde_json::{Map, Value};

use crate::error::CniError;
use crate::netconf::NetConf;
use crate::request::is_name;

/// Stands between the parts of a file's name, and in none of them.
const BETWEEN: char = ':';

/// The interface of an attachment whose file does not say it: the one that every runtime asks for.
const USUAL_INTERFACE: &str = "eth0";

/// The directory of the files.
#[derive(Clone, Debug)]
pub(crate) struct States {
    directory: PathBuf,
    network: String,
}

/// What is kept of one attachment of our network.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
    /// The delegate's configuration.
    pub(crate) bytes: Vec<u8>,
    path: PathBuf,
}

impl State {
    /// The delegate's configuration as an object, if it is one that names a plugin.
    pub(crate) fn configuration(&self) -> Option<(String, Map<String, Value>)> {
        let object: Map<String, Value> = serde_json::from_slice(&self.bytes).ok()?;
        let kind = object.get("type")?.as_str()?.to_owned();
        Some((kind, object))
    }
}

impl States {
    pub(crate) fn of(conf: &NetConf) -> Result<Self, CniError> {
        Ok(Self { directory: conf.files()?.data_dir, network: conf.name.clone() })
    }

    /// Keeps the configuration of an attachment, in place of what was kept before.
    pub(crate) fn save(&self, container_id: &str, ifname: &str, bytes: &[u8]) -> Result<(), CniError> {
        let path = self.path(container_id, ifname);
        self.write(&path, &self.directory.join(container_id), bytes)
            .map_err(|error| CniError::plugin(format!("failed to save the state of {container_id}: {error}")))
    }

    fn write(&self, path: &Path, upstreams: &Path, bytes: &[u8]) -> io::Result<()> {
        // Configurations may hold secrets of other plugins.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        if same_file(path, upstreams) {
            absent(fs::remove_file(upstreams))?;
        }
        write_whole(path, bytes, 0o600).map_err(io::Error::other)?;
        match fs::hard_link(path, upstreams) {
            // Another attachment of the container has it.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    }

    /// Finds what is kept of an attachment.
    pub(crate) fn find(&self, container_id: &str, ifname: &str) -> Result<Option<State>, CniError> {
        let (container_id, ifname) = (container_id.to_owned(), ifname.to_owned());
        let own = State { path: self.path(&container_id, &ifname), container_id, ifname, bytes: Vec::new() };
        let upstreams = State { path: self.directory.join(&own.container_id), ..own.clone() };
        if let Some(found) = read(own)? {
            return Ok(Some(found));
        }
        Ok(read(upstreams)?.filter(|state| self.is_upstreams(state)))
    }

    /// Everything that is kept of this network.
    pub(crate) fn all(&self) -> Result<Vec<State>, CniError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| unreadable(&self.directory, &error))?,
        };
        let mut states = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| unreadable(&self.directory, &error))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let parts: Vec<_> = name.split(BETWEEN).collect();
            let (container_id, ifname) = match parts[..] {
                [id, network, ifname] if network == self.network => (id.to_owned(), ifname.to_owned()),
                [id] if is_name(id) => (id.to_owned(), USUAL_INTERFACE.to_owned()),
                _ => continue,
            };
            let named = parts.len() == 3;
            let state = read(State { container_id, ifname, bytes: Vec::new(), path })?;
            states.extend(state.filter(|state| named || self.is_upstreams(state)));
        }
        Ok(states)
    }

    /// Forgets an attachment, under both names.
    pub(crate) fn remove(&self, state: &State) -> Result<(), CniError> {
        let upstreams = self.directory.join(&state.container_id);
        let both =
            if same_file(&state.path, &upstreams) { absent(fs::remove_file(&upstreams)) } else { Ok(()) };
        both.and_then(|()| absent(fs::remove_file(&state.path)))
            .map_err(|error| CniError::plugin(format!("failed to remove {}: {error}", state.path.display())))
    }

    /// Whether a file under upstream's name was written by upstream's plugin, for our network: one of ours has a second
    /// name.
    fn is_upstreams(&self, state: &State) -> bool {
        let alone = fs::metadata(&state.path).is_ok_and(|metadata| metadata.nlink() == 1);
        // What upstream left half written can be of any network.
        alone
            && state
                .configuration()
                .is_none_or(|(_, object)| object.get("name").is_some_and(|name| *name == self.network))
    }

    fn path(&self, container_id: &str, ifname: &str) -> PathBuf {
        self.directory.join(format!("{container_id}{BETWEEN}{}{BETWEEN}{ifname}", self.network))
    }
}

/// Reads a file into a state that names it; none if there is no file.
fn read(state: State) -> Result<Option<State>, CniError> {
    match fs::read(&state.path) {
        Ok(bytes) => Ok(Some(State { bytes, ..state })),
        // A directory is nobody's state.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => Ok(None),
        Err(error) => Err(unreadable(&state.path, &error)),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> CniError {
    CniError::plugin(format!("failed to read {}: {error}", path.display()))
}

/// Whether two different names lead to one file.
fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    one != other && identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// What is gone need not be removed.
fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
