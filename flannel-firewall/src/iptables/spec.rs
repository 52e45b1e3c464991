//! A rule in the syntax of iptables. Pure.
//!
//! Rules are compared by meaning, because the order of words differs between versions of iptables.

use std::fmt;
use std::iter::Peekable;

use ipnet::IpNet;

use crate::rules::{AddressSelector, KUBE_PROXY_MARK, Rule, RuleAction};

/// A parsed rule.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct RuleSpec {
    pub(crate) source: Option<AddressSelector>,
    pub(crate) destination: Option<AddressSelector>,
    pub(crate) mark: Option<String>,
    pub(crate) comment: Option<String>,
    /// The chain or target that it jumps to; empty for a rule without a target.
    pub(crate) target: String,
    pub(crate) fully_random: bool,
    /// All other words; flannel's own rules have none.
    pub(crate) others: Vec<String>,
}

impl RuleSpec {
    /// Builds one of flannel's rules, with a comment.
    pub(crate) fn of(rule: &Rule, comment: &str) -> Self {
        let (target, fully_random) = match rule.action {
            RuleAction::Return => ("RETURN", false),
            RuleAction::Masquerade { fully_random } => ("MASQUERADE", fully_random),
            RuleAction::Accept => ("ACCEPT", false),
        };
        Self {
            source: rule.source,
            destination: rule.destination,
            mark: rule.marked.then(|| format!("{KUBE_PROXY_MARK:#x}/{KUBE_PROXY_MARK:#x}")),
            fully_random,
            ..Self::jump(target, comment)
        }
    }

    /// Builds the jump into a chain, with a comment.
    pub(crate) fn jump(target: &str, comment: &str) -> Self {
        Self { target: target.to_owned(), comment: Some(comment.to_owned()), ..Self::default() }
    }

    /// Builds the rule that always returns to the calling chain.
    pub(crate) fn returning() -> Self {
        Self { target: "RETURN".to_owned(), ..Self::default() }
    }

    /// Parses the words after the chain.
    pub(crate) fn read(words: impl Iterator<Item = String>) -> Self {
        let mut spec = Self::default();
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let negated = word == "!" && words.peek().is_some();
            let word = if negated { words.next().unwrap_or_default() } else { word };
            if !spec.take(&word, negated, &mut words) {
                spec.others.extend(negated.then(|| "!".to_owned()));
                spec.others.push(word);
            }
        }
        spec
    }

    /// Takes in one word and its values; returns false if the word goes to `others`.
    fn take(
        &mut self,
        word: &str,
        negated: bool,
        words: &mut Peekable<impl Iterator<Item = String>>,
    ) -> bool {
        let selector = |text: &String| Some(AddressSelector { net: net(text)?, negated });
        match word {
            "-s" | "--source" if words.peek().and_then(selector).is_some() => {
                self.source = words.next().as_ref().and_then(selector);
            }
            "-d" | "--destination" if words.peek().and_then(selector).is_some() => {
                self.destination = words.next().as_ref().and_then(selector);
            }
            "-m" if matches!(words.peek().map(String::as_str), Some("comment" | "mark")) => {
                drop(words.next())
            }
            "--comment" if !negated => self.comment = words.next(),
            "--mark" if !negated => self.mark = words.next(),
            "-j" if !negated => self.target = words.next().unwrap_or_default(),
            "--random-fully" => self.fully_random = true,
            _ => return false,
        }
        true
    }

    /// Returns whether the rule is about one of these prefixes.
    pub(crate) fn mentions(&self, nets: &[IpNet]) -> bool {
        [self.source, self.destination].into_iter().flatten().any(|selector| nets.contains(&selector.net))
    }
}

impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, selector) in [("-s", self.source), ("-d", self.destination)] {
            if let Some(AddressSelector { net, negated }) = selector {
                write!(f, "{}{name} {net} ", if negated { "! " } else { "" })?;
            }
        }
        if let Some(mark) = &self.mark {
            write!(f, "-m mark --mark {mark} ")?;
        }
        if let Some(comment) = &self.comment {
            write!(f, "-m comment --comment \"{comment}\" ")?;
        }
        write!(f, "-j {}", self.target)?;
        if self.fully_random { write!(f, " --random-fully") } else { Ok(()) }
    }
}

/// Parses a prefix, or an address as a host prefix.
fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().map(IpNet::from).ok())
}

/// Splits a line into words. A word in double quotes may contain blanks and escaped quotes.
pub(crate) fn words(line: &str) -> impl Iterator<Item = String> {
    let mut rest = line.chars().peekable();
    std::iter::from_fn(move || {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        rest.peek()?;
        let (mut word, mut is_quoted) = (String::new(), false);
        while let Some(c) = rest.next_if(|c| is_quoted || !c.is_whitespace()) {
            match c {
                '"' => is_quoted = !is_quoted,
                '\\' if is_quoted => word.extend(rest.next()),
                c => word.push(c),
            }
        }
        Some(word)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> RuleSpec {
        RuleSpec::read(words(text))
    }

    #[test]
    fn the_order_of_words_does_not_matter() {
        let forms = [
            r#"-s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
            r#"-m comment --comment "flanneld masq" ! -d 224.0.0.0/4 -s 10.5.0.0/16 -j MASQUERADE --random-fully"#,
        ];
        assert_eq!(read(forms[0]), read(forms[1]));
        assert_eq!(read(forms[0]).to_string(), forms[0]);
        for different in [
            r#"-s 10.5.0.0/16 -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
            r#"-s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE"#,
            r#"-s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully"#,
            r#"-s 10.5.0.0/16 ! -d 224.0.0.0/4 -o eth0 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
        ] {
            assert_ne!(read(different), read(forms[0]), "{different}");
        }
    }

    #[test]
    fn unknown_words_are_kept() {
        let spec = read(
            r#"! -i docker0 -s 10.0.0.1 -m conntrack ! --ctstate NEW -m comment --comment "a \"b\"" -j DROP"#,
        );
        assert_eq!(spec.others, ["!", "-i", "docker0", "-m", "conntrack", "!", "--ctstate", "NEW"]);
        assert_eq!((spec.comment.as_deref(), spec.target.as_str()), (Some("a \"b\""), "DROP"));
        assert_eq!(spec.source.map(|source| source.net.to_string()).as_deref(), Some("10.0.0.1/32"));
    }

    proptest! {
        #[test]
        fn no_line_panics(line: String) {
            let _ = read(&line);
        }

        #[test]
        fn no_words_panic(words in "((-[sdjmig]|!|--(comment|mark)|\"|10\\.5\\.0\\.0/16|comment) ?){0,12}") {
            let _ = read(&words);
        }
    }
}
