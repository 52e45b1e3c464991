use super::*;

fn parse(arguments: &[&str], variable: Option<(&str, &str)>) -> Result<DoctorOptions, FlagError> {
    let lookup = |name: &str| variable.filter(|(key, _)| *key == name).map(|(_, value)| value.into());
    super::parse(arguments.iter().map(OsString::from), lookup)
}

#[test]
fn the_options_of_a_running_daemon_count_unless_the_command_line_sets_others() {
    let of = |flags: &[&str]| parse(flags, None).expect("good flags");
    let (running, other) = (Path::new("/run/a.env"), Path::new("/run/b.env"));
    let none = of(&["--json"]);
    assert!(none.json);
    assert_eq!(none.choose([Some(running)].into_iter()), Some(0));
    assert_eq!(none.choose([None].into_iter()), None);
    assert_eq!(none.choose([].into_iter()), None);
    let both = || [Some(other), None, Some(running)].into_iter();
    assert_eq!(none.choose(both()), None);
    assert_eq!(of(&["-json", "-subnet-file=/run/a.env"]).choose(both()), Some(2));
    assert_eq!(of(&["-subnet-file=/run/c.env"]).choose(both()), None);
    assert_eq!(of(&["-subnet-file=/run/a.env", "-etcd-prefix=/other"]).choose(both()), None);
    for options in
        [parse(&["-etcd-prefix=/other"], None), parse(&[], Some(("FLANNELD_ETCD_PREFIX", "/other")))]
    {
        let options = options.expect("good flags");
        assert_eq!(
            (options.choose([Some(running)].into_iter()), &*options.daemon.etcd.prefix),
            (None, "/other")
        );
    }
    assert!(parse(&["word"], None).is_err() && parse(&["-nosuch"], None).is_err());
}

#[test]
fn a_command_line_of_a_subcommand_is_none_and_an_invalid_one_is_an_error() {
    let of = |arguments: &[&str]| of_daemon(arguments.iter().map(OsString::from).collect(), |_| None);
    assert!(matches!(of(&["-etcd-prefix=/n"]), Ok(Some(options)) if options.etcd.prefix == "/n"));
    for other in [&["doctor", "--json"][..], &["migrate-etcd"], &["-version"], &["-help"]] {
        assert_eq!(of(other), Ok(None), "{other:?}");
    }
    assert!(of(&["-kube-subnet-mgr"]).is_err());
}
