//! Findings about foreign rules that block the network's packets.

use flannel_testing::check_requirements;

use crate::cluster::{Cluster, NFTABLES, PATIENCE, VXLAN, check_ping};
use crate::site::{Site, commands, what};

fn with_pods(flags: &[&str], config: &str) -> (Site, Vec<flannel_testing::Pod>) {
    check_requirements().unwrap();
    let (cluster, pods) = Cluster::with_pods(2, config, flags);
    check_ping(&pods[0], &pods[1]);
    let mut site = Site::of(cluster);
    site.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    (site, pods)
}

#[test]
fn a_rule_that_drops_tunnel_datagrams_is_printed_and_bypassed() {
    let (site, pods) = with_pods(&[], VXLAN);
    let ufw = "iptables -N ufw-before-input; iptables -A INPUT -j ufw-before-input
        iptables -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        iptables -A ufw-before-input -p tcp -j ACCEPT; iptables -P INPUT DROP";
    let finding = site.cycle("firewall-drops-tunnel", || drop(site.shell(ufw)));
    assert!(what(&finding).contains("-P INPUT DROP") && what(&finding).contains("8472"), "{finding:#}");
    assert_eq!(finding["cure"]["lasting"][0], "ufw allow 8472/udp");
    check_ping(&pods[0], &pods[1]);

    let firewalld = "nft -f - <<'END'
table inet firewalld {
  chain filter_INPUT { type filter hook input priority 10
    ct state { established, related } accept
    ip protocol tcp accept
    reject with icmpx type admin-prohibited
  }
}
END";
    let finding = site.cycle("firewall-drops-tunnel", || drop(site.shell(firewalld)));
    assert!(what(&finding).contains("inet firewalld"), "{finding:#}");
    assert!(
        finding["cure"]["lasting"][0].as_str().is_some_and(|line| line.contains("8472/udp")),
        "{finding:#}"
    );
    check_ping(&pods[0], &pods[1]);

    site.cycle("firewall-drops-tunnel", || {
        drop(site.shell("iptables -A OUTPUT -p udp --dport 8472 -j DROP"))
    });
    check_ping(&pods[1], &pods[0]);
}

#[test]
fn dockers_policy_and_foreign_tables_that_block_pods_are_found() {
    let (site, pods) = with_pods(&["-iptables-forward-rules=false"], VXLAN);
    let finding = site.cycle("firewall-drops-pods", || drop(site.shell("iptables -P FORWARD DROP")));
    assert!(what(&finding).contains("-P FORWARD DROP"), "{finding:#}");
    check_ping(&pods[0], &pods[1]);
    site.shell("iptables -P FORWARD ACCEPT");

    let table = "nft add table inet guard
        nft add chain inet guard forward '{ type filter hook forward priority 5; policy drop; }'
        nft add rule inet guard forward ct state established accept";
    let finding = site.cycle("firewall-drops-pods", || drop(site.shell(table)));
    assert!(what(&finding).contains("inet guard"), "{finding:#}");
    check_ping(&pods[0], &pods[1]);
}

#[test]
fn the_printed_commands_restore_our_missing_rules() {
    for config in [VXLAN, NFTABLES] {
        let (mut site, _pods) = with_pods(&["-ip-masq"], config);
        // A running daemon would restore them.
        site.cluster.daemon(0).terminate(PATIENCE).unwrap();
        let finding = site.cycle("firewall-rules", || drop(site.shell("nft flush ruleset")));
        assert!(commands(&finding)[0].contains("10.5.0.0/16"), "{finding:#}");
    }
}

#[test]
fn a_table_that_iptables_cannot_list_gets_an_nft_command() {
    let mut site = Site::running(1);
    let before = site.ids();
    site.shell("nft 'add rule ip filter FORWARD meta time > 1 counter'");
    let finding = site.wait_for_finding("iptables-not-shown");
    assert!(commands(&finding)[0].contains("\"EnableNFTables\":true"), "{finding:#}");
    site.apply(&finding);
    assert_eq!(site.calls(), "systemctl restart flanneld\n");
    site.cluster.daemon(0).terminate(PATIENCE).unwrap();
    site.cluster.start(0);
    site.cluster.wait_until_ready(0);
    site.wait_until_cured(&before, "iptables-not-shown");
}

#[test]
fn failing_programs_are_reinstalled() {
    let site = Site::new(1);
    let before = site.ids();
    site.stand_in("iptables-save", "echo 'Segmentation fault' >&2; exit 139");
    let look = || {
        let mut command = site.doctor_command();
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", site.path("").display()));
        crate::site::Report::of(
            &flannel_testing::output_in(&site.cluster.lab.hosts[0].namespace, command).unwrap(),
        )
    };
    let report = look();
    let finding = report.finding("firewall-unreadable").unwrap_or_else(|| panic!("{:#?}", report.findings));
    assert!(what(finding).contains("Segmentation fault"), "{finding:#}");
    let program = site.path("iptables-save");
    site.stand_in("apt-get", &format!("rm {}", program.display()));
    site.apply(finding);
    assert_eq!(look().ids(), before);
}
