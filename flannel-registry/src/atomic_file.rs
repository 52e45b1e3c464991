//! Files that are written whole or not at all.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Replaces the file at `path`, and makes its directory if that is missing.
///
/// A reader sees the old file or the new one, also after a crash of the host. A regular file keeps its mode; anything
/// else in its place, such as a symbolic link, is replaced by a file of the permission bits `mode`.
///
/// # Errors
///
/// [`WriteError`] if the file system refuses; then the old file is still there and nothing is beside it.
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

    let (temporary, file) = create_beside(directory, name).map_err(failed("open"))?;
    let published = fill(file, content, mode)
        .map_err(failed("write"))
        .and_then(|()| fs::rename(&temporary, path).map_err(failed("replace")));
    if published.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    published?;
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

/// The permission bits of the regular file at `path`, if there is one.
fn mode_of_regular_file(path: &Path) -> Option<u32> {
    let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(metadata.permissions().mode() & 0o7777)
}

/// Creates a file next to the one called `name`, under a name that nobody else uses.
fn create_beside(directory: &Path, name: &OsStr) -> io::Result<(PathBuf, File)> {
    loop {
        // The hasher's keys are random; the name needs to be unlikely, not secret, because `create_new`
        // opens nothing that exists.
        let random = RandomState::new().hash_one(name) % 1_000_000_000;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(random.to_string());
        let path = directory.join(hidden);
        // Nobody else may read it until its mode is known.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            opened => return opened.map(|file| (path, file)),
        }
    }
}

/// Writes `content`, gives the file its mode whatever the umask, and waits until the disk has both.
fn fill(mut file: File, content: &[u8], mode: u32) -> io::Result<()> {
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Waits until the disk has the directory's new entry. File systems that cannot do it say `EINVAL`
/// (fsync(2)), which leaves nothing more to do.
fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}
