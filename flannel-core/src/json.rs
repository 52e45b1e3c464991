//! JSON by the rules of Go's `encoding/json`, as upstream reads it.
//!
//! Member names ignore case, the last of several spellings wins, unknown members are ignored and `null` means "not given".
//! [`Json`] keeps a value as text, such as the data of a backend, which decodes it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A JSON value in its original text, which clones share. Values are equal if their texts are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Json(Arc<str>);

impl Json {
    /// Parses a text with exactly one JSON value, and strips the surrounding white space.
    ///
    /// # Errors
    ///
    /// [`JsonError`] names the position of the syntax error.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let value: &RawValue = serde_json::from_str(text).map_err(JsonError::syntax)?;
        Ok(Self(value.get().into()))
    }

    /// Returns the text of the value.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses the value as an object.
    ///
    /// # Errors
    ///
    /// [`JsonError`] if the value is neither an object nor `null`.
    pub fn object(&self) -> Result<Object<'_>, JsonError> {
        Object::parse(&self.0)
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The reason why a text isn't the expected JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

impl JsonError {
    fn syntax(error: serde_json::Error) -> Self {
        if error.is_eof() {
            Self("unexpected end of JSON input".to_owned())
        } else {
            Self(format!("json: {error}"))
        }
    }

    fn wrong_type(value: &str, member: &str, wanted: &str) -> Self {
        let found = match value.as_bytes().first() {
            Some(b'"') => "string".to_owned(),
            Some(b'{') => "object".to_owned(),
            Some(b'[') => "array".to_owned(),
            Some(b't' | b'f') => "bool".to_owned(),
            _ => format!("number {value}"),
        };
        Self(format!("json: cannot unmarshal {found} into {member}, which must be {wanted}"))
    }
}

/// The members of a JSON object, looked up by Go's rules.
///
/// ```
/// use flannel_core::json::Object;
///
/// let object = Object::parse(r#"{"vni": 7, "VNI": 8, "Port": null}"#)?;
/// assert_eq!(object.unsigned("VNI")?, Some(8));
/// assert_eq!(object.unsigned("Port")?, None);
/// # Ok::<(), flannel_core::json::JsonError>(())
/// ```
#[derive(Debug)]
pub struct Object<'a> {
    members: Vec<(Text<'a>, &'a RawValue)>,
}

/// A string, borrowed from the surrounding text unless it contains escapes.
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Object<'a> {
    /// Parses an object; `null` counts as an empty one.
    ///
    /// # Errors
    ///
    /// [`JsonError`] if the text is malformed, has trailing characters, or contains another kind of value.
    pub fn parse(text: &'a str) -> Result<Self, JsonError> {
        let members: Option<Members<'a>> = serde_json::from_str(text).map_err(JsonError::syntax)?;
        Ok(Self { members: members.map(|members| members.0).unwrap_or_default() })
    }

    /// Returns the text of a member, even if it is `null`.
    #[must_use]
    pub fn raw(&self, member: &str) -> Option<&'a str> {
        self.members
            .iter()
            .rev()
            .find(|(name, _)| name.0.eq_ignore_ascii_case(member))
            .map(|(_, value)| value.get())
    }

    /// Returns the value of a member; `None` if it is absent or `null`.
    #[must_use]
    pub fn value(&self, member: &str) -> Option<Json> {
        self.given(member).map(|text| Json(text.into()))
    }

    /// Returns a string member.
    ///
    /// # Errors
    ///
    /// [`JsonError`] names the member if it is not a string.
    pub fn string(&self, member: &str) -> Result<Option<String>, JsonError> {
        self.typed(member, "a string")
    }

    /// Returns a string member, without a copy if it contains no escapes.
    ///
    /// # Errors
    ///
    /// As for [`string`](Self::string).
    pub fn text(&self, member: &str) -> Result<Option<Cow<'a, str>>, JsonError> {
        Ok(self.typed::<Text<'a>>(member, "a string")?.map(|text| text.0))
    }

    /// Returns a boolean member.
    ///
    /// # Errors
    ///
    /// [`JsonError`] names the member if it is not `true` or `false`.
    pub fn boolean(&self, member: &str) -> Result<Option<bool>, JsonError> {
        self.typed(member, "true or false")
    }

    /// Returns a member that is a non-negative integer.
    ///
    /// # Errors
    ///
    /// [`JsonError`] names the member if it is another kind of value.
    pub fn unsigned(&self, member: &str) -> Result<Option<u64>, JsonError> {
        self.typed(member, "a whole number, zero or more")
    }

    fn given(&self, member: &str) -> Option<&'a str> {
        self.raw(member).filter(|text| *text != "null")
    }

    fn typed<T: Deserialize<'a>>(&self, member: &str, wanted: &str) -> Result<Option<T>, JsonError> {
        let Some(text) = self.given(member) else {
            return Ok(None);
        };
        serde_json::from_str(text).map(Some).map_err(|_| JsonError::wrong_type(text, member, wanted))
    }
}

/// The members in the order of the text, including duplicates.
struct Members<'a>(Vec<(Text<'a>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder)
    }
}

struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(8);
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_spelling_of_a_member_wins() {
        let object = Object::parse(r#"{"Network":"a","NETWORK":"b","network":"c"}"#).unwrap();
        assert_eq!(object.string("Network").unwrap().as_deref(), Some("c"));
    }

    #[test]
    fn null_is_an_empty_object_and_an_absent_member() {
        assert_eq!(Object::parse("null").unwrap().raw("a"), None);
        let object = Object::parse(r#"{"a":null}"#).unwrap();
        assert_eq!(object.raw("a"), Some("null"));
        assert_eq!(object.value("a"), None);
        assert_eq!(object.boolean("a").unwrap(), None);
    }

    #[test]
    fn a_value_that_is_no_object_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "unexpected end of JSON input"),
            ("{\"a\":1", "unexpected end of JSON input"),
            ("[]", "invalid type: sequence, expected an object"),
            ("{} x", "trailing characters"),
            ("{\\\n\"a\":1}", "key must be a string"),
        ] {
            let error = Object::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_error_names_a_member_of_the_wrong_type() {
        let object = Object::parse(r#"{"n":"24","m":-1,"o":24.5,"s":5,"b":"true"}"#).unwrap();
        for member in ["n", "m", "o"] {
            let error = object.unsigned(member).unwrap_err().to_string();
            assert!(error.contains(&format!("into {member},")), "{error}");
        }
        assert!(
            object.string("s").unwrap_err().to_string().starts_with("json: cannot unmarshal number 5 into s")
        );
        assert!(
            object.boolean("b").unwrap_err().to_string().starts_with("json: cannot unmarshal string into b")
        );
    }
}
