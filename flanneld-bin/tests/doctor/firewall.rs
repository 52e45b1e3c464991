//! Rules of others in the way of the network's packets.

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
fn the_rule_that_drops_the_tunnels_datagrams_is_printed_and_stepped_over() {
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
fn the_policy_that_docker_sets_and_tables_of_others_are_found_in_the_way_of_pods() {
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
fn our_own_rules_that_are_missing_are_put_back_by_the_printed_commands() {
    for config in [VXLAN, NFTABLES] {
        let (mut site, _pods) = with_pods(&["-ip-masq"], config);
        // A daemon that runs would put them back by itself.
        site.cluster.daemon(0).terminate(PATIENCE).unwrap();
        let finding = site.cycle("firewall-rules", || drop(site.shell("nft flush ruleset")));
        assert!(commands(&finding)[0].contains("10.5.0.0/16"), "{finding:#}");
    }
}

#[test]
fn a_table_that_iptables_cannot_show_is_left_for_nftables() {
    let mut site = Site::running(1);
    let before = site.ids();
    site.shell("nft 'add rule ip filter FORWARD meta time > 1 counter'");
    let finding = site.finds("iptables-not-shown");
    assert!(commands(&finding)[0].contains("\"EnableNFTables\":true"), "{finding:#}");
    site.apply(&finding);
    assert_eq!(site.asked(), "systemctl restart flanneld\n");
    site.cluster.daemon(0).terminate(PATIENCE).unwrap();
    site.cluster.start(0);
    site.cluster.wait_until_ready(0);
    site.is_as(&before, "iptables-not-shown");
}

#[test]
fn programs_that_fail_are_installed_anew() {
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
