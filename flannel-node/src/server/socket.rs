//! The status socket.
//!
//! The socket is created under a temporary name, restricted to its owner, and then renamed, so that it is never open to
//! other users. A socket that an earlier process left behind is replaced; that of a running process is not.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tracing::{info, warn};

use super::http::{Handler, Request};
use crate::status::StatusSource;

/// Serves the status on a unix socket for root.
#[derive(Debug)]
pub struct StatusSocket {
    path: PathBuf,
    source: StatusSource,
}

impl StatusSocket {
    /// Prepares a socket at this path.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, source: StatusSource) -> Self {
        Self { path: path.into(), source }
    }

    /// Serves, and never returns. A socket that cannot be created is logged.
    pub async fn run(self) -> Infallible {
        let Self { path, source } = self;
        let socket = match Socket::open(&path) {
            Ok(socket) => socket,
            Err(reason) => {
                warn!(
                    "The status is not available: failed to create the socket {}: {reason}",
                    path.display()
                );
                return std::future::pending().await;
            }
        };
        info!("Serving the status on the socket {}", path.display());
        let handler: Handler = Box::new(move |request: &Request| super::private(request, &source));
        let listener = &socket.listener;
        super::http::serve(|| async { listener.accept().await.map(|(stream, _)| stream) }, handler).await
    }
}

/// A listening socket that is removed when dropped, unless another process has replaced it.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Socket {
    fn open(path: &Path) -> io::Result<Self> {
        check_path(path)?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut own = path.as_os_str().to_owned();
        own.push(format!(".{}", std::process::id()));
        let own = PathBuf::from(own);
        remove(&own)?;
        let listener = UnixListener::bind(&own)?;
        let renamed = fs::set_permissions(&own, Permissions::from_mode(0o600))
            .and_then(|()| fs::metadata(&own))
            .and_then(|metadata| fs::rename(&own, path).map(|()| metadata));
        match renamed {
            Ok(metadata) => {
                Ok(Self { listener, path: path.to_owned(), inode: (metadata.dev(), metadata.ino()) })
            }
            Err(error) => {
                let _ = remove(&own);
                Err(error)
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == self.inode);
        if is_ours {
            // The next process replaces a socket that is left.
            let _ = remove(&self.path);
        }
    }
}

/// Returns an error if the path is in use by another file or a running process.
fn check_path(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"))
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it")),
        },
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flannel_testing::eventually;

    use super::*;

    /// A temporary directory.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("flanneld-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("made");
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).expect("there");
            entries.map(|entry| entry.expect("there").file_name().to_string_lossy().into_owned()).collect()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn a_socket_is_restricted_to_its_owner_and_removed_with_its_process() {
        let directory = Directory::new("socket-own");
        let path = directory.0.join("deeper/a.sock");
        let socket = Socket::open(&path).expect("made");
        let metadata = fs::symlink_metadata(&path).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let directory = Directory::new("socket-stale");
        let path = directory.0.join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        // A program that another test starts at this moment inherits the socket until it runs.
        let first = eventually(Duration::from_secs(30), || Socket::open(&path));
        let first = first.expect("the old one is stale");
        let second = Socket::open(&path).expect_err("it is served");
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(directory.names(), ["a.sock"]);
        drop(first);
    }

    #[tokio::test]
    async fn other_files_and_the_socket_of_a_successor_are_not_removed() {
        let directory = Directory::new("socket-other");
        let path = directory.0.join("a.sock");
        fs::write(&path, "precious").expect("written");
        assert_eq!(Socket::open(&path).expect_err("a file").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("there"), b"precious");
        fs::remove_file(&path).expect("removed");
        let first = Socket::open(&path).expect("made");
        fs::remove_file(&path).expect("removed");
        let _second = Socket::open(&path).expect("made");
        drop(first);
        assert!(UnixStream::connect(&path).is_ok(), "the successor's socket stays");
    }
}
