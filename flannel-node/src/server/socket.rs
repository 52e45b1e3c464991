//! The unix socket over which root asks a daemon.
//!
//! The socket is made under another name, closed to everybody else, and then takes its place in one step: nobody meets
//! one that is open too far, and one that a daemon left behind is replaced. That of a daemon that lives stays.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;
use tracing::{info, warn};

use super::http::{Request, Respond};
use crate::status::StatusSource;

/// Serves the socket for ever, if it can be made.
pub(super) async fn serve(path: &Path, sources: Arc<StatusSource>) -> Infallible {
    let socket = match Socket::open(path) {
        Ok(socket) => socket,
        Err(reason) => {
            warn!("flanneld status will not work: the socket {} cannot be made: {reason}", path.display());
            return std::future::pending().await;
        }
    };
    info!("Telling the status on the socket {}", path.display());
    let respond: Arc<Respond> = Arc::new(move |request: &Request| super::private(request, &sources));
    let listener = &socket.listener;
    super::http::serve(|| async { listener.accept().await.map(|(stream, _)| stream) }, respond).await
}

/// A socket that is removed when it is dropped, unless it is another one's by then.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Socket {
    fn open(path: &Path) -> io::Result<Self> {
        check_place(path)?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut own = path.as_os_str().to_owned();
        own.push(format!(".{}", std::process::id()));
        let own = PathBuf::from(own);
        remove(&own)?;
        let listener = UnixListener::bind(&own)?;
        let placed = fs::set_permissions(&own, Permissions::from_mode(0o600))
            .and_then(|()| fs::metadata(&own))
            .and_then(|metadata| fs::rename(&own, path).map(|()| metadata));
        match placed {
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
            // One that stays is replaced by the next daemon.
            let _ = remove(&self.path);
        }
    }
}

/// Tells why the socket cannot be there: something else is, or another daemon's.
fn check_place(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "something else is there"))
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon serves it")),
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

    /// A directory of this test's own, which is removed at its end.
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
    async fn a_socket_is_for_its_owner_alone_and_goes_with_its_daemon() {
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
    async fn one_left_behind_is_replaced_and_one_that_is_served_stays() {
        let directory = Directory::new("socket-stale");
        let path = directory.0.join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        // A program that another test starts at this moment holds it open until it runs.
        let first = eventually(Duration::from_secs(30), || Socket::open(&path));
        let first = first.expect("the one before was left behind");
        let second = Socket::open(&path).expect_err("it is served");
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(directory.names(), ["a.sock"]);
        drop(first);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_touched_nor_is_that_of_a_successor() {
        let directory = Directory::new("socket-other");
        let path = directory.0.join("a.sock");
        fs::write(&path, "precious").expect("written");
        assert_eq!(Socket::open(&path).expect_err("a file").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("there"), b"precious");
        fs::remove_file(&path).expect("removed");
        let first = Socket::open(&path).expect("made");
        fs::remove_file(&path).expect("somebody removes it");
        let _second = Socket::open(&path).expect("made");
        drop(first);
        assert!(UnixStream::connect(&path).is_ok(), "the successor's stays");
    }
}
