//! Templates of the configuration, and what jobs put into them.

use std::ffi::{OsStr, OsString};

use futures_util::FutureExt as _;
use serde_json::Value;

use super::{Input, Template, command::Command};
use crate::{
    config::{ExecCommand, ExecParam},
    fuzz::{Target, lines, text},
    handlers::fuzz::{read, refused},
};

pub const TARGETS: &[Target] = &[
    Target { name: "exec_template", run: template, seeds: template_seeds },
    Target { name: "exec_payload", run: payload, seeds: payload_seeds },
];

fn template_seeds() -> Vec<Vec<u8>> {
    lines("--in={a}:{b-2}\n{{a}} {a}{{\n{{{a}}}\n{\na}\n{}\n{a{b}}\nplain")
}

/// Each placeholder as `<name>`, character by character; None for a mistake.
fn expanded(template: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = template.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\0' => return None,
            '{' | '}' if rest.next_if_eq(&c).is_some() => out.push(c),
            '}' => return None,
            '{' => {
                let mut name = String::new();
                loop {
                    match rest.next()? {
                        '}' if name.is_empty() => return None,
                        '}' => break,
                        c if c.is_ascii_alphanumeric() || c == '_' || c == '-' => name.push(c),
                        _ => return None,
                    }
                }
                out.push_str(&format!("<{name}>"));
            }
            c => out.push(c),
        }
    }
    Some(out)
}

fn template(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let filled = Template::parse(text).ok().map(|template| {
        let names: Vec<_> = template.params().map(|name| (name.to_owned(), format!("<{name}>"))).collect();
        let value = |name: &str| {
            let found = names.iter().find(|(known, _)| known == name);
            found.map_or(OsStr::new(""), |(_, value)| OsStr::new(value))
        };
        template.fill(value).0.into_string().expect("text stays text")
    });
    assert_eq!(filled, expanded(text));
}

/// One parameter of each sort that does no I/O, each at the beginning of an argument and inside one.
fn command() -> Command {
    let args = ["{text}", "--in={text}", "{dash}", "{number}", "{word}", "{{x}}"];
    let params = [
        ("text", ExecParam::Text { max_bytes: Some(20), allow_dash: false }),
        ("dash", ExecParam::Text { max_bytes: None, allow_dash: true }),
        ("number", ExecParam::Integer { min: Some(0), max: Some(99) }),
        ("word", ExecParam::Choice { values: vec!["on".into(), "off".into()] }),
    ];
    let settings = ExecCommand {
        program: "/bin/true".into(),
        args: args.map(str::to_owned).to_vec(),
        params: params.map(|(name, param)| (name.to_owned(), param)).into(),
        env: Default::default(),
        dir: None,
        concurrency: 1,
        max_output_bytes: 1,
        retry_exit_codes: Vec::new(),
    };
    Command::check("c", &settings).expect("a sound command")
}

fn payload_seeds() -> Vec<Vec<u8>> {
    lines(
        r#"{"command":"c","params":{"text":"a b","dash":"--x","number":7,"word":"on"},"stdin":"hello"}
           {"command":"c","params":{"text":"-rf","dash":"","number":99,"word":"off"},"stdin_base64":"AAEC"}
           {"command":"c","params":{"text":"{dash}","dash":"$(id)","number":0,"word":"on","more":1}}"#,
    )
}

/// No word of a job becomes an option, another argument, or more than it may be.
fn payload(bytes: &[u8]) {
    let Some(input) = read::<Input>(bytes) else { return };
    let arguments = command().arguments(&input.params).now_or_never().expect("no parameter does I/O");
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return refused(&error),
    };
    let said = |name: &str| input.params[name].as_str().map(str::to_owned);
    let (text, dash, word) = (said("text"), said("dash"), said("word"));
    let (Some(text), Some(dash), Some(word)) = (text, dash, word) else { panic!("{:?}", input.params) };
    let number = input.params["number"].as_i64().expect("a number");
    assert!(input.params.len() == 4 && text.len() <= 20 && dash.len() <= 256 && !text.starts_with('-'));
    assert!((0..=99).contains(&number) && ["on", "off"].contains(&word.as_str()));
    let expected = [text.clone(), format!("--in={text}"), dash, number.to_string(), word, "{x}".to_owned()];
    assert_eq!(arguments, expected.map(OsString::from));
    assert!(input.params.values().all(|value| !matches!(value, Value::String(text) if text.contains('\0'))));
}
