//! Patterns with `...` for any text.

/// Whether a text matches a pattern, in which each `...` stands for any text, also none.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let parts: Vec<&str> = pattern.split("...").collect();
    let [first, between @ .., last] = parts.as_slice() else { return text == pattern };
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    for part in between {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn dots_match_any_text_and_everything_else_itself() {
    for (pattern, text) in [
        ("a", "a"),
        ("a ... d", "a b\nc d"),
        ("a ... d", "a b d c d"),
        ("10.5....0/24 via 10.5....0 dev ...", "10.5.33.0/24 via 10.5.33.0 dev x"),
        ("...b...", "abc"),
        ("...", ""),
    ] {
        assert!(matches(pattern, text), "{pattern:?} {text:?}");
    }
    for (pattern, text) in [
        ("a", "a b"),
        ("a ... d", "a b c"),
        ("a ... d", "a d"),
        ("a...a", "a"),
        ("...b...c", "cb"),
        ("a...", "ba"),
    ] {
        assert!(!matches(pattern, text), "{pattern:?} {text:?}");
    }
}
