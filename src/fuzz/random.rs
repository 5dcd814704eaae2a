//! Inputs by chance, the same in every run: seeds that were changed a little, many times.

use std::{
    env,
    thread::{self, panicking},
};

use fastrand::Rng;

use super::{Target, targets};

/// Inputs for each target.
const INPUTS: usize = 8000;

/// Bytes of an input, about.
const MAX_LEN: usize = 2048;

/// What parsers stumble over.
const WORDS: &[&[u8]] = &[
    b"\0",
    b"\n",
    b"\r\n",
    b" ",
    b"+",
    b"-",
    b"/",
    b"..",
    b".",
    b"*",
    b"%",
    b"{",
    b"}",
    b"\"",
    b"[",
    b"]",
    b":",
    b",",
    b"=",
    b"@",
    b"\\",
    b"0",
    b"1",
    b"-1",
    b"1e400",
    b"1e-400",
    b"0.1",
    b"9007199254740993",
    b"18446744073709551616",
    b"99999999999999999999",
    b"null",
    b"true",
    b"0x7f",
    b"0177",
    b"\xff",
    b"\xc3\xbc",
    b"\xf0\x9f\x92\xa9",
    b"\x80",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xff\xff\xff\xff\x0f",
    b"\x80\x00",
    b"application/json",
    b"127.0.0.1",
    b"[::1]",
    b"http://",
    b"\xe3\x80\x82",
    b"\x7f",
    b"~",
    b"PT1H",
    b"2026-05-01T12:00:00Z",
    b"10s",
    b"9999999999999h",
];

/// Names an input if the target panics at it.
struct Input<'a>(&'a Target, &'a [u8]);

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if panicking() {
            eprintln!("target {} breaks at b\"{}\": add it to the seeds", self.0.name, self.1.escape_ascii());
        }
    }
}

fn change(rng: &mut Rng, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    let at = rng.usize(..=input.len());
    let end = (at + rng.usize(..9)).min(input.len());
    match rng.u8(..8) {
        0 if at < input.len() => input[at] = rng.u8(..),
        1 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
        // A length, or a digit.
        2 if at < input.len() => input[at] = input[at].wrapping_add(if rng.bool() { 1 } else { 255 }),
        3 => drop(input.drain(at..end)),
        4 => drop(input.splice(at..at, WORDS[rng.usize(..WORDS.len())].iter().copied())),
        5 => drop(input.splice(at..end, WORDS[rng.usize(..WORDS.len())].iter().copied())),
        6 => {
            let part = input[at..end].repeat(rng.usize(1..30));
            input.splice(at..at, part);
        }
        _ => {
            let other = &others[rng.usize(..others.len())];
            let from = rng.usize(..=other.len());
            input.splice(at.., other[from..].iter().copied());
        }
    }
    input.truncate(MAX_LEN);
}

fn run(target: &Target, seed: u64) {
    let seeds = (target.seeds)();
    let mut rng = Rng::with_seed(seed);
    // The seeds themselves first.
    for input in &seeds {
        let input = Input(target, input);
        (target.run)(input.1);
    }
    for n in 0..INPUTS {
        let mut input = seeds[n % seeds.len()].clone();
        (0..rng.u8(1..8)).for_each(|_| change(&mut rng, &mut input, &seeds));
        let input = Input(target, &input);
        (target.run)(input.1);
    }
}

#[test]
fn no_target_breaks_at_what_chance_brings() {
    let seed = env::var("JOBWIRE_SEED").map_or(1, |text| text.parse().expect("JOBWIRE_SEED is a number"));
    println!("JOBWIRE_SEED={seed}: {INPUTS} inputs for each of {} targets", targets().count());
    let broken: Vec<_> = thread::scope(|scope| {
        let runs: Vec<_> =
            targets().map(|target| (target.name, scope.spawn(move || run(target, seed)))).collect();
        runs.into_iter().filter_map(|(name, run)| run.join().err().map(|_| name)).collect()
    });
    assert!(broken.is_empty(), "{broken:?}");
}
