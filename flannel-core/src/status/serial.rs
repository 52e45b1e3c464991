//! The JSON form of the types in a status.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::lease::{NodeId, PublicAddrs, Revision};
use crate::subnet::SubnetKey;

/// Serializes to an array such as `["10.5.1.0/24", "fc00:0:0:1::/64"]`, which other programs read more easily than the key in
/// a registry.
impl Serialize for SubnetKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        texts(self.nets(), serializer)
    }
}

impl<'de> Deserialize<'de> for SubnetKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (mut v4, mut v6) = (None, None);
        for net in read_texts(deserializer, "subnets")? {
            match net {
                IpNet::V4(net) => v4 = Some(net),
                IpNet::V6(net) => v6 = Some(net),
            }
        }
        Self::new(v4, v6).ok_or_else(|| D::Error::custom("there is no subnet"))
    }
}

/// Serializes to an array of addresses, IPv4 first.
impl Serialize for PublicAddrs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        texts(self.addresses(), serializer)
    }
}

impl<'de> Deserialize<'de> for PublicAddrs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut public = Self::default();
        for address in read_texts(deserializer, "addresses")? {
            match address {
                IpAddr::V4(address) => public.v4 = Some(address),
                IpAddr::V6(address) => public.v6 = Some(address),
            }
        }
        Ok(public)
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Revision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Revision {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self)
    }
}

fn texts<S: Serializer, T: fmt::Display>(
    values: impl Iterator<Item = T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut sequence = serializer.serialize_seq(None)?;
    for value in values {
        sequence.serialize_element(&format_args!("{value}"))?;
    }
    sequence.end()
}

/// Reads an array of at most one value per family.
fn read_texts<'de, D, T>(deserializer: D, what: &'static str) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: fmt::Display>,
{
    struct Texts<T>(&'static str, std::marker::PhantomData<T>);

    impl<'de, T: std::str::FromStr<Err: fmt::Display>> Visitor<'de> for Texts<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an array of {}", self.0)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
            let mut values = Vec::new();
            while let Some(text) = sequence.next_element::<String>()? {
                if values.len() == 2 {
                    return Err(A::Error::custom(format_args!("more than two {}", self.0)));
                }
                values.push(text.parse().map_err(A::Error::custom)?);
            }
            Ok(values)
        }
    }

    deserializer.deserialize_seq(Texts(what, std::marker::PhantomData))
}
