//! The options of `flanneld doctor`: those of the daemon, and how to say what was found.

use std::ffi::OsString;
use std::path::Path;

use super::{IgnoredArguments, Options, Request, check, table};
use crate::flags::{self, FlagDescription, FlagError};

/// How to look.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DoctorOptions {
    /// How the daemon is started, or would be.
    pub(crate) daemon: Options,
    /// How much of that was said, by flags or variables.
    told: Told,
    /// Write for programs.
    pub(crate) json: bool,
}

/// How much a command line says of the daemon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Told {
    Nothing,
    /// Which one it is.
    SubnetFile,
    More,
}

impl DoctorOptions {
    /// The running daemon whose options to look by, given the subnet files of all: the only one if nothing was said of
    /// the daemon, or the one whose subnet file was named. If there is none, the options that were given count.
    pub(crate) fn choose<'a>(
        &self,
        mut running: impl ExactSizeIterator<Item = Option<&'a Path>>,
    ) -> Option<usize> {
        let is_only = running.len() == 1;
        running.position(|file| match self.told {
            Told::Nothing => is_only && file.is_some(),
            Told::SubnetFile => file == Some(&*self.daemon.subnet_file),
            Told::More => false,
        })
    }
}

/// Reads the arguments behind the word.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<DoctorOptions, FlagError> {
    let (settings, arguments) = flags::read_command(&table::daemon_flags_and_json(), arguments, environment)?;
    let json = settings.json;
    let told = match () {
        () if arguments.has_only(&[table::JSON.name]) => Told::Nothing,
        () if arguments.has_only(&[table::JSON.name, "subnet-file"]) => Told::SubnetFile,
        () => Told::More,
    };
    let daemon = check(settings, IgnoredArguments::default()).map_err(|bad| arguments.invalid(&bad))?;
    Ok(DoctorOptions { daemon, told, json })
}

/// The flags beside those of the daemon, for the usage text.
pub(crate) fn descriptions() -> Vec<FlagDescription> {
    flags::describe(&[table::JSON])
}

/// Reads the command line of a daemon; `None` if it asks for something else.
pub(crate) fn of_daemon(
    arguments: Vec<OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Options>, FlagError> {
    if arguments.first().is_some_and(|word| crate::subcommands::find(word).is_some()) {
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
    fn a_command_line_that_is_no_daemons_is_told_from_one_that_cannot_be_read() {
        let of = |arguments: &[&str]| of_daemon(arguments.iter().map(OsString::from).collect(), |_| None);
        assert!(matches!(of(&["-etcd-prefix=/n"]), Ok(Some(options)) if options.etcd.prefix == "/n"));
        for other in [&["doctor", "--json"][..], &["migrate-etcd"], &["-version"], &["-help"]] {
            assert_eq!(of(other), Ok(None), "{other:?}");
        }
        assert!(of(&["-kube-subnet-mgr"]).is_err());
    }
}
