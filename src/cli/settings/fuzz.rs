//! The configuration file and the variables of the environment.

use std::{ffi::OsString, path::Path};

use super::{Error, Node, Settings, decode, tree, variable};
use crate::{
    config::Config,
    fuzz::{Target, lines, text},
    handlers::Handlers,
};

pub const TARGETS: &[Target] = &[
    Target { name: "config_file", run: file, seeds: file_seeds },
    Target { name: "config_variable", run: environment, seeds: variable_seeds },
];

fn file_seeds() -> Vec<Vec<u8>> {
    let all = toml::to_string(&Config::default()).expect("settings can be written");
    let sections = all.split("\n\n").map(str::to_owned);
    let own = [
        "[queues.\"acme/mail\"]\nmax_attempts = 3\nretention = \"2h 30m\"\nconcurrency = 0x10",
        "[exec.commands.hash]\nprogram = \"/bin/true\"\nargs = [\"{a}\"]\nparams.a = { type = \"integer\", min = 1 }\n\
         [exec.commands.x]\nprogram = \"/x\"\nargs = [\"{b}{c}\"]\n[exec.commands.x.params]\nb = {type=\"path\",root=\"/\"}\n\
         c = {type=\"choice\",values=[\"v\"]}\n[exec.commands.x.env]\nA = \"b\"",
        "[http]\nallow_hosts = [\"a\", \"b:1\", \"[::1]:2\"]\nallow_networks = [\"10.0.0.0/8\", \"fd00::/8\"]",
        "listen = \"0.0.0.0:1\"\ninsecure_allow_remote = true\n[web]\nallowed_origins = [\"https://a.example\"]",
        "defaults.backoff_multiplier = nan\nlimits.max_wait = 1979-05-27T07:32:00Z",
    ];
    sections.chain(own.map(str::to_owned)).map(String::into_bytes).collect()
}

fn of(text: &str) -> Option<Result<Settings, Error>> {
    Some(Settings::of(tree::parse(Path::new("x.toml"), text).ok()?))
}

fn file(bytes: &[u8]) {
    let Some(settings) = text(bytes).and_then(of) else { return };
    match settings {
        Ok(settings) => holds(&settings),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Settings that passed the checks start a server, and can be written down and read again.
fn holds(settings: &Settings) {
    let config = &settings.config;
    assert!(config.listen.ip().is_loopback() || config.insecure_allow_remote);
    assert!(config.limits.max_payload_bytes + config.limits.max_output_bytes <= 3 << 20);
    assert!(config.limits.max_wait < config.limits.max_unary);
    if let Err(error) = Handlers::builtin(config) {
        panic!("{error} was found only at the start");
    }
    assert!(settings.rows().is_ok_and(|rows| !rows.is_empty()));
    let told = toml::to_string(config).expect("settings can be written");
    let again = of(&told).expect("what is written is TOML").expect("what is written holds");
    assert_eq!(toml::to_string(&again.config).as_ref(), Ok(&told));
}

fn variable_seeds() -> Vec<Vec<u8>> {
    lines(
        "LIMITS__MAX_WAIT=30s\nHTTP__ALLOW_HOSTS=a,b:1\nQUEUES__MAIL__MAX_ATTEMPTS=3\nLISTEN=127.0.0.1:1\n\
         LIMITS=1\nDEFAULTS__BACKOFF_MULTIPLIER=1.5\nHTTP__ENABLED=false\nEXEC__COMMANDS__A.B__PROGRAM=/\0\nEXEC__COMMANDS__A__PROGRAM=/x\nLIMITS____X=1",
    )
}

fn environment(bytes: &[u8]) {
    let Some((name, value)) = text(bytes).and_then(|text| text.split_once('=')) else { return };
    let mut node = Node::empty();
    let set = variable(&OsString::from(format!("JOBWIRE_{name}")), &value.into());
    if let Ok(Some(set)) = set
        && node.merge(set, "").is_ok()
    {
        match Settings::of(node) {
            Ok(settings) => holds(&settings),
            Err(error) => assert!(error.to_string().contains("JOBWIRE_"), "{error}"),
        }
    }
    let _: Result<Config, _> = decode::decode(&Node::empty());
}
