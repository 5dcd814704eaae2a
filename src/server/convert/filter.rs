use super::time::timestamp;
use crate::{
    job::{Error, Filter, JobId, LabelMatch, NamePattern, State},
    proto::JobFilter,
};

/// Patterns, states and labels of one filter, each.
const MAX_ITEMS: usize = 256;

/// Characters of a pattern: a name and a `*`.
const MAX_PATTERN: usize = 129;

/// Which jobs. `max_ids` bounds the ids named.
pub fn filter(filter: Option<JobFilter>, max_ids: usize) -> Result<Filter, Error> {
    let filter = filter.unwrap_or_default();
    let bounded = |name: &str, size: usize, limit: usize| match size <= limit {
        true => Ok(()),
        false => {
            Err(Error::TooLarge { field: format!("filter.{name}"), limit: limit as u64, size: size as u64 })
        }
    };
    bounded("job_ids", filter.job_ids.len(), max_ids)?;
    bounded("queues", filter.queues.len(), MAX_ITEMS)?;
    bounded("kinds", filter.kinds.len(), MAX_ITEMS)?;
    bounded("states", filter.states.len(), MAX_ITEMS)?;
    bounded("labels", filter.labels.len(), MAX_ITEMS)?;
    let job_ids = filter.job_ids.iter().enumerate();
    Ok(Filter {
        job_ids: job_ids
            .map(|(index, id)| JobId::parse(&format!("filter.job_ids[{index}]"), id))
            .collect::<Result<_, _>>()?,
        queues: patterns("queues", filter.queues)?,
        kinds: patterns("kinds", filter.kinds)?,
        states: states(&filter.states)?,
        labels: filter
            .labels
            .into_iter()
            .map(|(name, value)| match value.as_str() {
                "*" => (name, LabelMatch::Present),
                _ => (name, LabelMatch::Equals(value)),
            })
            .collect(),
        submitted_after: filter
            .submitted_after
            .map(|time| timestamp("filter.submitted_after", &time))
            .transpose()?,
        submitted_before: filter
            .submitted_before
            .map(|time| timestamp("filter.submitted_before", &time))
            .transpose()?,
    })
}

fn patterns(field: &str, patterns: Vec<String>) -> Result<Vec<NamePattern>, Error> {
    let pattern = |(index, text): (usize, String)| {
        let bad = |why: &str| Err(Error::invalid(format!("filter.{field}[{index}]"), why));
        if text.is_empty() || text.len() > MAX_PATTERN || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return bad("must be a name, or a prefix followed by *");
        }
        match text.strip_suffix('*') {
            Some(prefix) if prefix.contains('*') => bad("may have a * at its end only"),
            Some(prefix) => Ok(NamePattern::Prefix(prefix.to_owned())),
            None if text.contains('*') => bad("may have a * at its end only"),
            None => Ok(NamePattern::Exact(text)),
        }
    };
    patterns.into_iter().enumerate().map(pattern).collect()
}

fn states(numbers: &[i32]) -> Result<Vec<State>, Error> {
    let state = |(index, &number): (usize, &i32)| {
        let why = || format!("{number} is not a state");
        State::from_number(number).ok_or_else(|| Error::invalid(format!("filter.states[{index}]"), why()))
    };
    numbers.iter().enumerate().map(state).collect()
}
