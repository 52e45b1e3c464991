//! The endpoints of a cluster, and the member to ask first.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Why an endpoint cannot be used.
#[derive(Debug)]
pub(crate) struct EndpointError {
    /// The endpoint without the part before an `@`, which may hold a password.
    pub(crate) endpoint: String,
    pub(crate) reason: String,
}

/// The URLs of all members, and the member to ask first.
#[derive(Debug)]
pub(crate) struct EndpointPicker {
    urls: Vec<String>,
    current: AtomicUsize,
}

impl EndpointPicker {
    /// Parses endpoints and starts at a random member, so that hosts with equal options spread over the members.
    ///
    /// Ignores empty endpoints; the scheme defaults to `http`. `check` validates a URL further.
    pub(crate) fn parse(
        endpoints: &[String],
        mut check: impl FnMut(&str) -> Result<(), String>,
    ) -> Result<Self, EndpointError> {
        let mut urls = Vec::new();
        for endpoint in
            endpoints.iter().map(|endpoint| endpoint.trim()).filter(|endpoint| !endpoint.is_empty())
        {
            let url = url(endpoint).and_then(|url| check(&url).map(|()| url));
            urls.push(url.map_err(|reason| {
                let endpoint = endpoint.rsplit('@').next().unwrap_or_default().to_owned();
                EndpointError { endpoint, reason }
            })?);
        }
        let current = AtomicUsize::new(fastrand::usize(..urls.len().max(1)));
        Ok(Self { urls, current })
    }

    /// Returns the URLs of all members.
    pub(crate) fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Returns the URL of a member.
    pub(crate) fn url(&self, member: usize) -> &str {
        self.urls.get(member).map_or("", String::as_str)
    }

    /// Returns the index of the member to ask first.
    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Returns all members once, starting with the one to ask first.
    pub(crate) fn order(&self) -> impl Iterator<Item = usize> + Send + use<> {
        let (first, members) = (self.current(), self.urls.len());
        (0..members).map(move |n| (first + n) % members)
    }

    /// Moves on from a member that failed, unless another call already did.
    pub(crate) fn skip(&self, member: usize) {
        let next = (member + 1) % self.urls.len().max(1);
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn url(endpoint: &str) -> Result<String, String> {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("http", endpoint));
    if !matches!(scheme, "http" | "https") {
        return Err("expected http://ADDRESS:PORT or https://ADDRESS:PORT".to_owned());
    }
    if rest.contains('@') {
        return Err("an endpoint must not contain a user or password".to_owned());
    }
    Ok(format!("{scheme}://{}", rest.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipping_a_member_twice_at_once_skips_one_member() {
        let urls = vec!["http://a".to_owned(), "http://b".to_owned(), "http://c".to_owned()];
        let picker = EndpointPicker { urls, current: AtomicUsize::new(2) };
        picker.skip(2);
        picker.skip(2);
        assert_eq!(picker.current(), 0);
    }
}
