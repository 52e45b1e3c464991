//! The options of `flanneld doctor`.

use std::ffi::OsString;
use std::path::Path;

use super::{IgnoredArguments, Options, Request, check, table};
use crate::flags::{self, FlagDescription, FlagError};

/// The options of the subcommand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DoctorOptions {
    /// The options of the daemon.
    pub(crate) daemon: Options,
    /// How the command line selects a running daemon.
    selection: DaemonSelection,
    /// Print JSON.
    pub(crate) json: bool,
}

/// How a command line selects the running daemon whose options to use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum DaemonSelection {
    /// No flag or variable is set: the only daemon.
    Only,
    /// Only the subnet file is set: the daemon with this file.
    SubnetFile,
    /// Others are set: none; they are the options to use.
    None,
}

impl DoctorOptions {
    /// Returns the position of the selected daemon among the running ones, given their subnet files. With `None`, the
    /// options of the command line count.
    pub(crate) fn choose<'a>(
        &self,
        mut running: impl ExactSizeIterator<Item = Option<&'a Path>>,
    ) -> Option<usize> {
        let is_only = running.len() == 1;
        running.position(|file| match self.selection {
            DaemonSelection::Only => is_only && file.is_some(),
            DaemonSelection::SubnetFile => file == Some(&*self.daemon.subnet_file),
            DaemonSelection::None => false,
        })
    }
}

/// Parses the arguments after the subcommand.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<DoctorOptions, FlagError> {
    let (settings, arguments) = flags::read_command(&table::daemon_flags_and_json(), arguments, environment)?;
    let json = settings.json;
    let selection = match () {
        () if arguments.has_only(&[table::JSON.name]) => DaemonSelection::Only,
        () if arguments.has_only(&[table::JSON.name, "subnet-file"]) => DaemonSelection::SubnetFile,
        () => DaemonSelection::None,
    };
    let daemon = check(settings, IgnoredArguments::default()).map_err(|bad| arguments.invalid(&bad))?;
    Ok(DoctorOptions { daemon, selection, json })
}

/// Describes the flags except those of the daemon.
pub(crate) fn descriptions() -> Vec<FlagDescription> {
    flags::describe(&[table::JSON])
}

/// Parses the command line of another process; `None` if it does not run the daemon.
pub(crate) fn of_daemon(
    arguments: Vec<OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Options>, FlagError> {
    if arguments.first().is_some_and(|name| crate::subcommands::find(name).is_some()) {
        return Ok(None);
    }
    match super::parse(arguments, environment) {
        Ok(Request::Run(options)) => Ok(Some(*options)),
        Ok(Request::Version) | Err(FlagError::Help) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str], variable: Option<(&str, &str)>) -> Result<DoctorOptions, FlagError> {
        let lookup = |name: &str| variable.filter(|(key, _)| *key == name).map(|(_, value)| value.into());
        super::parse(arguments.iter().map(OsString::from), lookup)
    }

    #[test]
    fn the_flags_of_the_daemon_that_runs_count_where_none_are_given_but_which_it_is() {
        let of = |flags: &[&str]| parse(flags, None).expect("good flags");
        let (running, other) = (Path::new("/run/a.env"), Path::new("/run/b.env"));
        let quiet = of(&["--json"]);
        assert!(quiet.json);
        assert_eq!(quiet.choose([Some(running)].into_iter()), Some(0));
        assert_eq!(quiet.choose([None].into_iter()), None);
        assert_eq!(quiet.choose([].into_iter()), None);
        let both = || [Some(other), None, Some(running)].into_iter();
        assert_eq!(quiet.choose(both()), None);
        assert_eq!(of(&["-json", "-subnet-file=/run/a.env"]).choose(both()), Some(2));
        assert_eq!(of(&["-subnet-file=/run/c.env"]).choose(both()), None);
        assert_eq!(of(&["-subnet-file=/run/a.env", "-etcd-prefix=/told"]).choose(both()), None);
        for told in
            [parse(&["-etcd-prefix=/told"], None), parse(&[], Some(("FLANNELD_ETCD_PREFIX", "/told")))]
        {
            let told = told.expect("good flags");
            assert_eq!(
                (told.choose([Some(running)].into_iter()), &*told.daemon.etcd.prefix),
                (None, "/told")
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
}
