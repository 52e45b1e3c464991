use super::*;
use crate::options::doctor::of_daemon;

#[test]
fn the_commands_have_the_connection_options_but_no_password() {
    let arguments = [
        "-etcd-endpoints=https://10.0.0.1:2379,https://10.0.0.2:2379",
        "-etcd-cafile=/ca.pem",
        "-etcd-username=flannel",
        "-etcd-password=secret",
    ];
    let options = of_daemon(arguments.map(Into::into).to_vec(), |_| None);
    let etcd = options.expect("good flags").expect("a daemon's").etcd;
    assert_eq!(
        Etcdctl::new(&etcd, false).remove_record("10.5.1.0-24&fd00::-64"),
        "ETCDCTL_API=3 etcdctl --endpoints=https://10.0.0.1:2379,https://10.0.0.2:2379 --cacert=/ca.pem \
         --user=flannel del '/coreos.com/network/subnets/10.5.1.0-24&fd00::-64'"
    );
    assert_eq!(
        Etcdctl::new(&etcd, true).write_config(r#"{"Network":"10.5.0.0/16"}"#),
        "ETCDCTL_API=2 etcdctl --endpoints=https://10.0.0.1:2379,https://10.0.0.2:2379 --ca-file=/ca.pem \
         --username=flannel set /coreos.com/network/config '{\"Network\":\"10.5.0.0/16\"}'"
    );
}
