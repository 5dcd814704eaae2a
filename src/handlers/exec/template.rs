use std::ffi::{OsStr, OsString};

/// One argument of a command: text with placeholders such as `--out={name}`. `{{` and `}}` stand for braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Param(String),
}

impl Template {
    /// Reads an argument of the configuration. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains('\0') {
            return Err("an argument cannot contain a NUL".into());
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
                continue;
            }
            let name = rest.split_once('}').filter(|_| brace == "{");
            let Some((name, after)) = name else {
                return Err(format!(
                    "{brace:?} has no partner: write {brace}{brace} for the character itself"
                ));
            };
            check_name(name)?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Param(name.to_owned()));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self(parts))
    }

    /// The names of the placeholders.
    pub fn params(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Param(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The argument with its placeholders filled, and the name of the one that its first byte comes from, if it does.
    pub fn fill<'a>(&'a self, value: impl Fn(&str) -> &'a OsStr) -> (OsString, Option<&'a str>) {
        let mut argument = OsString::new();
        let mut first = None;
        for part in &self.0 {
            let at_start = argument.is_empty();
            match part {
                Part::Text(text) => argument.push(text),
                Part::Param(name) => {
                    argument.push(value(name));
                    if at_start && !argument.is_empty() {
                        first = Some(name.as_str());
                    }
                }
            }
        }
        (argument, first)
    }
}

/// Names of parameters: letters, digits, `_` and `-`.
pub fn check_name(name: &str) -> Result<(), String> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || !name.bytes().all(valid) {
        return Err(format!("{name:?} is no name of a parameter: use letters, digits, _ and -"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str) -> String {
        let template = Template::parse(template).unwrap();
        let (argument, _) = template.fill(|name| OsStr::new(if name == "empty" { "" } else { "{x}" }));
        argument.into_string().unwrap()
    }

    #[test]
    fn placeholders_are_filled_once() {
        assert_eq!(fill(""), "");
        assert_eq!(fill("plain"), "plain");
        assert_eq!(fill("--in={a}:{b-2}"), "--in={x}:{x}");
        assert_eq!(fill("{{a}} {a}{{"), "{a} {x}{");
        assert_eq!(fill("{{{a}}}"), "{{x}}");
    }

    #[test]
    fn mistakes_are_found() {
        for bad in ["{", "a}", "{a", "{}", "{a b}", "{a{b}}", "{a}}", "\0"] {
            assert!(Template::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_first_byte_has_an_owner() {
        let owner = |template: &str| {
            let template = Template::parse(template).unwrap();
            let value = |name: &str| OsStr::new(if name == "empty" { "" } else { "v" });
            template.fill(value).1.map(String::from)
        };
        assert_eq!(owner("{a}"), Some("a".into()));
        assert_eq!(owner("{empty}{a}"), Some("a".into()));
        assert_eq!(owner("{empty}-{a}"), None);
        assert_eq!(owner("-{a}"), None);
        assert_eq!(owner("{empty}"), None);
    }
}
