//! Names of every alphabet.

use std::fmt::Display;

use super::{Error, JobId, Key, Kind, QueueName, WorkerId};
use crate::fuzz::{Target, lines, text};

pub const TARGETS: &[Target] = &[Target { name: "names", run: names, seeds }];

const LOWER: &str = "abcdefghijklmnopqrstuvwxyz0123456789._-";
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const VISIBLE: &str = "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~";

fn seeds() -> Vec<Vec<u8>> {
    let long =
        ["a", &"a".repeat(127), &"a".repeat(128), &"a".repeat(129)].map(|text| text.as_bytes().to_vec());
    [lines("acme/mail\na.b-c_d/0\nA~b:c\n..\n.\na//b\na/../b\nMail\n\"key\"\nü"), long.to_vec()].concat()
}

fn names(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let made_of = |alphabets: &[&str]| text.chars().all(|c| alphabets.iter().any(|some| some.contains(c)));
    let segments = || text.split('/').all(|part| !["", ".", ".."].contains(&part));
    check(text, JobId::parse("job_id", text), made_of(&[LOWER, LETTERS, ":~"]));
    check(text, QueueName::parse("queue", text), made_of(&[LOWER, "/"]) && segments());
    check(text, Kind::parse("kind", text), made_of(&[LOWER, LETTERS]));
    check(text, Key::parse("key", text), made_of(&[LOWER, LETTERS, VISIBLE]));
    check(text, WorkerId::parse("worker_id", text), made_of(&[LOWER, LETTERS, VISIBLE]));
}

fn check<T: Display>(text: &str, parsed: Result<T, Error>, letters_fit: bool) {
    let allowed = letters_fit && (1..=128).contains(&text.len());
    assert_eq!(parsed.map(|name| name.to_string()).ok().as_deref(), allowed.then_some(text));
}
