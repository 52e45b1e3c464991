//! Requirements of a test: a program must be installed, a condition must become true.

use std::env;
use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Repeats `attempt` until it succeeds and returns its value.
///
/// Makes at least one attempt, even with a `limit` of zero, and a last one after the limit.
///
/// # Errors
/// Contains the last failure if no attempt succeeded within `limit`.
///
/// ```
/// use flannel_testing::eventually;
/// use std::time::Duration;
///
/// let mut left = 3;
/// let answer = eventually(Duration::from_secs(1), || {
///     left -= 1;
///     if left == 0 { Ok("done") } else { Err(format!("{left} left")) }
/// });
/// assert_eq!(answer.unwrap(), "done");
/// ```
pub fn eventually<A: Attempt>(
    limit: Duration,
    mut attempt: impl FnMut() -> A,
) -> Result<A::Value, DeadlineExceeded> {
    let started = Instant::now();
    loop {
        let late = started.elapsed() >= limit;
        match attempt().outcome() {
            Ok(value) => return Ok(value),
            Err(last_failure) if late => return Err(DeadlineExceeded { limit, last_failure }),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// The result of an attempt for [`eventually`]: `bool`, `Option` or `Result`.
pub trait Attempt {
    /// The value of a successful attempt.
    type Value;

    /// Converts the result into the value or the description of the failure.
    ///
    /// # Errors
    /// The description, if the attempt failed.
    fn outcome(self) -> Result<Self::Value, String>;
}

impl Attempt for bool {
    type Value = ();

    fn outcome(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("still false".to_owned()) }
    }
}

impl<T> Attempt for Option<T> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.ok_or_else(|| "still nothing".to_owned())
    }
}

impl<T, E: fmt::Display> Attempt for Result<T, E> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.map_err(|error| error.to_string())
    }
}

/// No attempt of [`eventually`] succeeded in time.
#[derive(thiserror::Error)]
#[error("not within {limit:?}: {last_failure}")]
pub struct DeadlineExceeded {
    limit: Duration,
    last_failure: String,
}

/// Formats like the message, because tests see it through `unwrap`.
impl fmt::Debug for DeadlineExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Finds the program `name` on the path; `package` is the Debian package that contains it.
///
/// # Errors
/// Contains the command that installs the program if it is missing.
pub fn program(name: &'static str, package: &'static str) -> Result<PathBuf, MissingProgram> {
    let path = env::var_os("PATH").unwrap_or_default();
    // The path of an unprivileged user often lacks the directories of system programs.
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or(MissingProgram { name, package })
}

/// A program that a test needs is not installed.
#[derive(Clone, Eq, PartialEq, thiserror::Error)]
#[error("program {name} is not installed: apt-get install -y {package}")]
pub struct MissingProgram {
    /// The name of the program.
    pub name: &'static str,
    /// The Debian packages that contain it, as `apt-get install` takes them.
    pub package: &'static str,
}

/// Formats like the message, because tests see it through `unwrap`.
impl fmt::Debug for MissingProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_returns_the_first_success() {
        let mut attempts = 0;
        let value = eventually(Duration::from_secs(10), || {
            attempts += 1;
            (attempts == 3).then_some(attempts)
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn a_failed_wait_contains_the_last_failure() {
        let mut attempts = 0;
        let outcome = eventually(Duration::from_millis(20), || {
            attempts += 1;
            Err::<(), _>(format!("attempt {attempts} failed"))
        });
        let message = outcome.unwrap_err().to_string();
        assert_eq!(message, format!("not within 20ms: attempt {attempts} failed"));
        assert!(attempts > 1);
    }

    #[test]
    fn a_missing_program_is_reported_with_the_command_that_installs_it() {
        assert!(program("sh", "dash").is_ok());
        let message = program("no-such-program", "some-package").unwrap_err().to_string();
        assert_eq!(message, "program no-such-program is not installed: apt-get install -y some-package");
    }
}
