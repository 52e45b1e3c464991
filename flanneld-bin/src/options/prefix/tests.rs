use super::*;

#[test]
fn a_prefix_is_normalised_like_a_path() {
    for (given, clean_prefix) in [
        ("/coreos.com/network", "/coreos.com/network"),
        ("/kubernetes/network/", "/kubernetes/network"),
        ("//a///b//", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("/../a", "/a"),
        ("a/b/", "a/b"),
        ("../a", "../a"),
        ("a/../../b", "../b"),
        ("/", ""),
        ("/..", ""),
    ] {
        assert_eq!(clean(given), Ok(clean_prefix.to_owned()), "{given}");
    }
    for empty in ["", ".", "a/.."] {
        assert!(clean(empty).is_err(), "{empty}");
    }
}
