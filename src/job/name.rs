//! Names, each of an alphabet and a length of its own. A value of these types is always valid.

use std::{fmt, sync::Arc};

use uuid::Uuid;

use super::Error;

/// Characters in a name of any sort.
const MAX_LEN: usize = 128;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $field:literal, $alphabet:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks alphabet and length. The error names `field`.
            pub fn parse(field: &str, text: &str) -> Result<Self, Error> {
                let valid: fn(&str) -> bool = $valid;
                if text.is_empty() || text.len() > MAX_LEN || !valid(text) {
                    return Err(Error::invalid(field, format!(
                        "must be {}, 1 to {MAX_LEN} characters", $alphabet
                    )));
                }
                Ok(Self(text.into()))
            }

            /// The text of the name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::parse($field, text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A job's id: the caller's own, or a UUIDv7 in its usual text form.
    JobId, "job_id", "letters, digits and . _ ~ : -",
    |text| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~:-".contains(&b))
);

impl From<Uuid> for JobId {
    /// The usual text of a UUID is a valid id.
    fn from(id: Uuid) -> Self {
        Self(Arc::from(&*id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer())))
    }
}

name!(
    /// A line that jobs wait in. Segments joined by `/`; a grant or a filter may name a prefix.
    QueueName, "queue", "segments of a-z, 0-9 and . _ - joined by /, none of them empty, . or ..",
    |text| text.split('/').all(valid_segment)
);
name!(
    /// Which handler runs a job.
    Kind, "kind", "letters, digits and . _ -",
    |text| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
);
name!(
    /// A key of the caller's choice: `request_id` or `unique_key`.
    Key, "key", "visible ASCII without spaces",
    |text| text.bytes().all(|b| b.is_ascii_graphic())
);
name!(
    /// Who runs an attempt.
    WorkerId, "worker_id", "visible ASCII without spaces",
    |text| text.bytes().all(|b| b.is_ascii_graphic())
);

impl WorkerId {
    /// How the names of pools begin. No other worker may be called that.
    const POOL: &str = "server-";

    /// The pool of a server's process.
    ///
    /// # Errors
    /// As [`WorkerId::parse`].
    pub fn of_pool(instance: &str) -> Result<Self, Error> {
        Self::parse("instance", &format!("{}{instance}", Self::POOL))
    }

    /// A worker that is no pool.
    ///
    /// # Errors
    /// As [`WorkerId::parse`]; and its name is one of a pool.
    pub fn of_program(field: &str, text: &str) -> Result<Self, Error> {
        let worker = Self::parse(field, text)?;
        if worker.is_pool() {
            let why = format!("must not begin with {}: those are the pools of servers", Self::POOL);
            return Err(Error::invalid(field, why));
        }
        Ok(worker)
    }

    /// Whether it ends with its server's process.
    pub fn is_pool(&self) -> bool {
        self.as_str().starts_with(Self::POOL)
    }
}

fn valid_segment(segment: &str) -> bool {
    !segment.is_empty()
        && segment != "."
        && segment != ".."
        && segment.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

impl Default for QueueName {
    /// The queue of jobs that name none.
    fn default() -> Self {
        Self("default".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_names_are_paths() {
        for good in ["default", "acme/mail", "a.b-c_d/0"] {
            assert_eq!(QueueName::parse("queue", good).unwrap().as_str(), good);
        }
        for bad in ["", "/", "a/", "/a", "a//b", "a/../b", ".", "Mail", "a b", "ü", "a\0"] {
            assert!(QueueName::parse("queue", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lengths_end_at_128() {
        assert!(JobId::parse("job_id", &"a".repeat(128)).is_ok());
        assert!(JobId::parse("job_id", &"a".repeat(129)).is_err());
        assert!(JobId::parse("job_id", "").is_err());
    }

    #[test]
    fn an_error_names_the_field() {
        let error = Kind::parse("spec.kind", "send mail").unwrap_err();
        assert!(matches!(&error, Error::Invalid { field, .. } if field == "spec.kind"), "{error:?}");
    }
}
