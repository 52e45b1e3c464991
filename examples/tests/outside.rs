//! A crate outside the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

use flannel_testing::Directory;

/// Crates that a data plane must not depend on: store clients, HTTP, TLS.
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
    assert!(names.contains(&"flannel-netlink"), "unexpected dependency tree: {tree}");
    let unwanted: Vec<_> = names.iter().filter(|name| UNWANTED.contains(name)).collect();
    assert!(unwanted.is_empty(), "unexpected dependencies {unwanted:?}:\n{tree}");

    let stdout = crate_.cargo(&["run", "--quiet"]);
    let received = stdout.lines().filter(|line| *line == "host 2 received from 10.5.1.0").count();
    assert_eq!(received, 2, "once after the start, and once after the repair:\n{stdout}");
    assert!(!stdout.contains("failed [O"), "objects failed:\n{stdout}");
}

/// The crate, in a temporary directory.
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
        // Use the same versions, so that cargo works offline.
        std::fs::copy(root.join("Cargo.lock"), directory.join("Cargo.lock")).expect("copies the versions");
        Self { directory }
    }

    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("outside/main.rs")
    }

    /// Runs cargo on the crate and returns its output.
    fn cargo(&self, arguments: &[&str]) -> String {
        // Reuse the build directory of this test.
        let test = std::env::current_exe().expect("a test has a path");
        let target = test.ancestors().nth(3).expect("a test is in a target directory");
        let output = Command::new(env!("CARGO"))
            .args(arguments)
            .args(["--offline", "--manifest-path"])
            .arg(self.directory.join("Cargo.toml"))
            .env("CARGO_TARGET_DIR", target)
            .output()
            .expect("cargo runs");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cargo {arguments:?} failed:\n{stdout}\n{stderr}");
        stdout
    }
}
