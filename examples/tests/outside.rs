//! A crate outside the workspace, as somebody else would write it.

use std::path::{Path, PathBuf};
use std::process::Command;

use flannel_testing::Directory;

/// What no data plane needs: clients of stores, HTTP, TLS.
const UNWANTED: [&str; 12] = [
    "etcd-client",
    "h2",
    "http",
    "http-body",
    "hyper",
    "native-tls",
    "openssl",
    "prost",
    "reqwest",
    "rustls",
    "tokio-rustls",
    "tonic",
];

#[test]
fn two_crates_of_this_workspace_bring_up_two_hosts_in_sixty_lines_without_a_store_http_or_tls() {
    let crate_ = Outside::new();
    let lines = std::fs::read_to_string(crate_.source()).unwrap().lines().count();
    assert!(lines < 60, "it has {lines} lines");

    let tree = crate_.cargo(&["tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"flannel-netlink"), "this is no tree of ours: {tree}");
    let unwanted: Vec<_> = names.iter().filter(|name| UNWANTED.contains(name)).collect();
    assert!(unwanted.is_empty(), "it pulls in {unwanted:?}:\n{tree}");

    let said = crate_.cargo(&["run", "--quiet"]);
    let heard = said.lines().filter(|line| *line == "host 2 heard from 10.5.1.0").count();
    assert_eq!(heard, 2, "once when it was up, and once when it was put right:\n{said}");
    assert!(!said.contains("failed [O"), "nothing fails:\n{said}");
}

/// The crate, in a directory of its own that goes when this is dropped.
struct Outside {
    directory: Directory,
}

impl Outside {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let directory = Directory::new().expect("makes a directory");
        let path = |name: &str| root.join(name).display().to_string();
        let manifest = format!(
            "[package]\nname = \"outside\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
             [[bin]]\nname = \"outside\"\npath = \"{}\"\n\n\
             [dependencies]\nflannel-core = {{ path = \"{}\" }}\nflannel-backend-vxlan = {{ path = \"{}\" }}\n\n\
             [profile.dev]\ndebug = \"line-tables-only\"\n\n[workspace]\n",
            path("examples/outside/main.rs"),
            path("flannel-core"),
            path("flannel-backend-vxlan"),
        );
        std::fs::write(directory.join("Cargo.toml"), manifest).expect("writes the manifest");
        // The same versions as here, so that nothing has to be downloaded.
        std::fs::copy(root.join("Cargo.lock"), directory.join("Cargo.lock")).expect("copies the versions");
        Self { directory }
    }

    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("outside/main.rs")
    }

    /// Runs cargo on the crate, and returns what it printed.
    fn cargo(&self, arguments: &[&str]) -> String {
        // Where this test was built, so that what was built there already need not be built again.
        let test = std::env::current_exe().expect("a test has a path");
        let target = test.ancestors().nth(3).expect("it lies in a target directory");
        let output = Command::new(env!("CARGO"))
            .args(arguments)
            .args(["--offline", "--manifest-path"])
            .arg(self.directory.join("Cargo.toml"))
            .env("CARGO_TARGET_DIR", target)
            .output()
            .expect("cargo runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cargo {arguments:?} failed:\n{said}\n{complaint}");
        said
    }
}
