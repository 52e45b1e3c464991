//! The Debian package, as far as it can be checked without building it.

use std::path::Path;

use flannel_testing::{Lab, LabOptions};

use crate::machine::Machine;

const MANIFEST: &str = include_str!("../../Cargo.toml");
const FILES: &str = include_str!("../../../dist/files");

/// The installed files: source, destination and mode.
fn files() -> Vec<[&'static str; 3]> {
    let lines = FILES.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().try_into().unwrap()).collect()
}

#[test]
fn the_package_has_the_files_that_the_script_installs() {
    let assets = MANIFEST.split_once("\nassets = [\n").unwrap().1.split_once("\n]").unwrap().0;
    let assets: Vec<[&str; 3]> = assets
        .lines()
        .map(|line| line.split('"').skip(1).step_by(2).collect::<Vec<_>>().try_into().unwrap())
        .collect();
    // Paths in the manifest are relative to this crate, except built programs; cargo-deb adds the licence.
    let expected: Vec<_> = files()
        .into_iter()
        .filter(|[_, destination, _]| !destination.ends_with("/copyright"))
        .map(|[source, destination, mode]| {
            let is_built = source.starts_with("target/");
            [
                if is_built { source.to_owned() } else { format!("../{source}") },
                destination.to_owned(),
                mode.to_owned(),
            ]
        })
        .collect();
    assert_eq!(assets.iter().map(|asset| asset.map(str::to_owned)).collect::<Vec<_>>(), expected);
}

#[test]
fn every_file_of_the_package_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for [source, ..] in files().iter().filter(|[source, ..]| !source.starts_with("target/")) {
        assert!(root.join(source).is_file(), "{source}");
    }
    for script in ["postinst", "prerm", "postrm"] {
        assert!(root.join("dist/debian").join(script).is_file(), "{script}");
    }
    assert!(MANIFEST.contains(r#"license-file = ["../LICENSE""#) && root.join("LICENSE").is_file());
    let kept = files().into_iter().filter(|[_, destination, _]| destination.starts_with("etc/"));
    for [_, destination, _] in kept {
        assert!(MANIFEST.contains(&format!(r#"conf-files = ["/{destination}"]"#)), "{destination}");
    }
}

#[test]
fn the_packages_scripts_stop_and_disable_the_daemon_only_on_removal() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let machine = Machine::boot(&lab.hosts[0].namespace, "host-1");
    machine.get("scripts/install");
    machine.get("rm -rf /run/flannel; sh dist/debian/postinst configure ''");
    assert_eq!(
        machine.get("stat -c '%F %a' /run/flannel /run/xtables.lock"),
        "directory 755\nregular empty file 600"
    );
    assert_eq!(
        machine.run("systemctl is-active flanneld").status.code(),
        Some(3),
        "not started on installation"
    );
    machine.write("/etc/default/flanneld", "FLANNELD_IFACE=eth0\n");
    // The start job waits for etcd.
    machine.get("systemctl --no-block enable --now flanneld");
    machine.get("until systemctl show -p MainPID flanneld | grep -v =0; do sleep 0.05; done");
    machine.get("sh dist/debian/prerm upgrade 2");
    assert_eq!(machine.get("systemctl is-enabled flanneld"), "enabled");
    machine.get("sh dist/debian/prerm remove");
    assert_eq!(machine.get("systemctl is-enabled flanneld || true"), "disabled");
    assert_eq!(machine.get("systemctl show -p MainPID --value flanneld"), "0");
    machine.get("sh dist/debian/postrm remove");
    assert!(machine.path("/run/flannel").exists());
    machine.get("sh dist/debian/postrm purge");
    assert!(!machine.path("/run/flannel").exists());
}
