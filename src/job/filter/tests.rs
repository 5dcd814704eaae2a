use super::*;
use crate::job::{JobSpec, Payload};

/// A queued job `a` in `acme/mail` of kind `send.mail`, labelled tenant=t1, submitted at 1000.
fn job() -> Job {
    let spec = JobSpec {
        queue: "acme/mail".parse().unwrap(),
        labels: BTreeMap::from([("tenant".to_owned(), "t1".to_owned())]),
        ..JobSpec::new("send.mail".parse().unwrap(), Payload::none())
    };
    Job::accepted("a".parse().unwrap(), spec.into(), Timestamp(1000))
}

fn matching(filters: impl IntoIterator<Item = Filter>) {
    for filter in filters {
        assert!(filter.matches(&job()), "{filter:?}");
    }
}

fn missing(filters: impl IntoIterator<Item = Filter>) {
    for filter in filters {
        assert!(!filter.matches(&job()), "{filter:?}");
    }
}

fn ids<const N: usize>(ids: [&str; N]) -> Filter {
    Filter { job_ids: ids.iter().map(|id| id.parse().unwrap()).collect(), ..Filter::default() }
}

fn exact(name: &str) -> NamePattern {
    NamePattern::Exact(name.to_owned())
}

fn prefix(name: &str) -> NamePattern {
    NamePattern::Prefix(name.to_owned())
}

fn label(name: &str, wanted: LabelMatch) -> Filter {
    Filter { labels: BTreeMap::from([(name.to_owned(), wanted)]), ..Filter::default() }
}

#[test]
fn an_empty_filter_matches_every_job() {
    matching([Filter::default()]);
}

#[test]
fn one_id_of_the_list_is_enough() {
    matching([ids(["a"]), ids(["b", "a"])]);
    missing([ids(["b"]), ids(["A"]), ids(["aa"])]);
}

#[test]
fn queues_and_kinds_by_name_or_prefix() {
    let queues = |queues| Filter { queues, ..Filter::default() };
    matching([
        queues(vec![exact("acme/mail")]),
        queues(vec![prefix("acme/")]),
        queues(vec![prefix("")]),
        queues(vec![prefix("acme/mail")]),
        queues(vec![exact("other"), prefix("acme")]),
    ]);
    missing([queues(vec![exact("acme")]), queues(vec![prefix("mail")]), queues(vec![exact("acme/*")])]);
    let kinds = |kinds| Filter { kinds, ..Filter::default() };
    matching([kinds(vec![exact("send.mail")]), kinds(vec![prefix("send.")])]);
    missing([kinds(vec![exact("send")]), kinds(vec![prefix("acme/")])]);
}

#[test]
fn labels_must_all_be_there() {
    let equals = |value: &str| LabelMatch::Equals(value.to_owned());
    matching([label("tenant", LabelMatch::Present), label("tenant", equals("t1"))]);
    missing([
        label("tenant", equals("t2")),
        label("tenant", equals("")),
        label("Tenant", LabelMatch::Present),
        label("other", LabelMatch::Present),
    ]);
    let mut both = label("tenant", equals("t1"));
    both.labels.insert("other".to_owned(), LabelMatch::Present);
    missing([both]);
}

#[test]
fn times_are_exclusive() {
    let after = |time| Filter { submitted_after: Some(Timestamp(time)), ..Filter::default() };
    let before = |time| Filter { submitted_before: Some(Timestamp(time)), ..Filter::default() };
    matching([after(999), before(1001)]);
    missing([after(1000), before(1000)]);
}

#[test]
fn a_state_of_the_list_is_enough_and_no_part_of_the_identity() {
    let states = |states: &[State]| Filter { states: states.to_vec(), ..Filter::default() };
    matching([states(&[State::QUEUED]), states(&[State::FAILED, State::QUEUED])]);
    missing([states(&[State::FAILED])]);
    assert!(states(&[State::FAILED]).matches_identity(&job()));
}

#[test]
fn all_fields_must_match() {
    let good = Filter { queues: vec![exact("acme/mail")], ..ids(["a"]) };
    matching([good.clone()]);
    missing([
        Filter { queues: vec![exact("other")], ..good.clone() },
        Filter { kinds: vec![exact("other")], ..good.clone() },
        Filter { states: vec![State::RUNNING], ..good.clone() },
        Filter { submitted_after: Some(Timestamp(2000)), ..good },
    ]);
}

#[test]
fn a_line_can_be_ruled_out_before_a_job_is_seen() {
    let filter = Filter { queues: vec![prefix("acme/")], kinds: vec![exact("x")], ..ids(["a"]) };
    assert!(filter.matches_line("acme/mail", "x"));
    assert!(!filter.matches_line("acme/mail", "y"));
    assert!(!filter.matches_line("other", "x"));
}
