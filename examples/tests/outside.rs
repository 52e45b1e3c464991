//! A crate outside the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

use flannel_testing::Directory;

/// Crates that a data plane and a node agent must not depend on: store clients, HTTP, TLS.
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
    let crate_ = Outside::new(&["flannel-core", "flannel-backend-vxlan"]);
    let lines = std::fs::read_to_string(crate_.source()).unwrap().lines().count();
    assert!(lines < 60, "it has {lines} lines");

    crate_.assert_dependencies("flannel-netlink");
    let stdout = crate_.cargo(&["run", "--quiet"]);
    let received = stdout.lines().filter(|line| *line == "host 2 received from 10.5.1.0").count();
    assert_eq!(received, 2, "once after the start, and once after the repair:\n{stdout}");
    assert!(!stdout.contains("failed [O"), "objects failed:\n{stdout}");
}

#[test]
fn a_node_agent_with_vxlan_and_probes_depends_on_no_store_http_or_tls() {
    // The default features of `flannel-node` include probes, doctor and the status server.
    Outside::new(&["flannel-node", "flannel-backend-vxlan"]).assert_dependencies("socket2");
}

/// The crate, in a temporary directory.
struct Outside {
    directory: Directory,
}

impl Outside {
    /// Creates a crate that depends on these crates of the workspace.
    fn new(dependencies: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let directory = Directory::new().expect("makes a directory");
        let path = |name: &str| root.join(name).display().to_string();
        let dependencies: String =
            dependencies.iter().map(|name| format!("{name} = {{ path = \"{}\" }}\n", path(name))).collect();
        let manifest = format!(
            "[package]\nname = \"outside\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
             [[bin]]\nname = \"outside\"\npath = \"{}\"\n\n\
             [dependencies]\n{dependencies}\n\
             [profile.dev]\ndebug = \"line-tables-only\"\n\n[workspace]\n",
            path("examples/outside/main.rs"),
        );
        std::fs::write(directory.join("Cargo.toml"), manifest).expect("writes the manifest");
        // Use the same versions, so that cargo works offline.
        std::fs::copy(root.join("Cargo.lock"), directory.join("Cargo.lock")).expect("copies the versions");
        Self { directory }
    }

    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("outside/main.rs")
    }

    /// Checks that the crate depends on `expected`, and on no unwanted crate.
    fn assert_dependencies(&self, expected: &str) {
        let tree = self.cargo(&["tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
        let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(names.contains(&expected), "{expected} is missing:\n{tree}");
        let unwanted: Vec<_> = names.iter().filter(|name| UNWANTED.contains(name)).collect();
        assert!(unwanted.is_empty(), "unexpected dependencies {unwanted:?}:\n{tree}");
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
