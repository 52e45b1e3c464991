//! Atomic file replacement.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Replaces the file at `path` atomically, and creates its directory if it is missing.
///
/// A reader sees either the old or the new content, also after a crash of the host. An existing regular file keeps its
/// mode; anything else at `path`, such as a symbolic link, is replaced by a regular file with the permission bits
/// `mode`.
///
/// # Errors
///
/// Returns [`WriteError`] if the file system refuses. The old file is then unchanged, and no temporary file is left.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), WriteError> {
    let failed = |step| move |source| WriteError { step, path: path.to_owned(), source };
    let Some(name) = path.file_name() else {
        return Err(failed("open")(ErrorKind::InvalidInput.into()));
    };
    // The parent of a bare name is the empty path, which names no directory.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(failed("create the directory of"))?;
    let mode = mode_of_regular_file(path).unwrap_or(mode);

    let mut prefix = OsString::from(".");
    prefix.push(name);
    // Only the owner can open it until it has its mode. It is removed on drop unless it is persisted.
    let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(directory).map_err(failed("open"))?;
    file.write_all(content)
        .and_then(|()| file.as_file().set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed("write"))?;
    file.persist(path).map_err(|error| failed("replace")(error.error))?;
    sync_directory(directory).map_err(failed("sync the directory of"))
}

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}", path.display())]
pub struct WriteError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Returns the permission bits of the regular file at `path`, if there is one.
fn mode_of_regular_file(path: &Path) -> Option<u32> {
    let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(metadata.permissions().mode() & 0o7777)
}

/// Flushes the directory entry to disk. File systems that do not support this return `EINVAL` (fsync(2)).
fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}
