use std::collections::BTreeSet;

use clap::{Args, ValueEnum};
use futures_util::StreamExt as _;

use super::{
    Error, Shell,
    filter::FilterArgs,
    progress::Live,
    shell::Format,
    table,
    values::{Since, since},
};
use crate::proto::{
    Gap, GetJobRequest, Job, JobProgress, WatchResultsRequest, WatchResultsResponse, job::State,
    watch_results_request, watch_results_request::Start, watch_results_response::Event,
};

const EXAMPLES: &str = "\
Examples:
  jobwire watch --queue mail                        what ends from now on
  jobwire watch --queue 'acme/*' --state failed --since 1h
  jobwire watch a b c --until-done                  progress bars on a terminal; ends with the last
  jobwire watch --after \"$CURSOR\" -o json | while read -r event; do …; done

Each line of JSON has the cursor to go on from. The watch comes back by itself when the connection is lost or the \
server restarts.

Exit codes with --until-done: 0 all succeeded, 1 some did not.";

/// Follow the outcomes of jobs as they come
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Watch {
    /// Only these; without a start, outcomes that are there already are shown first
    job_ids: Vec<String>,
    /// End when all the jobs named have ended
    #[arg(long, requires = "job_ids")]
    until_done: bool,
    /// Also show the progress that handlers report
    #[arg(long)]
    progress: bool,
    /// Also show other changes of state
    #[arg(long)]
    transitions: bool,
    /// If outcomes after the cursor are no longer kept
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    on_gap: OnGap,
    /// Leave out larger outputs
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(i32).range(0..))]
    max_output_bytes: Option<i32>,
    #[command(flatten)]
    start: StartArgs,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Where to start (by default: now)")]
#[group(multiple = false)]
struct StartArgs {
    /// After this cursor
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// At this time, or so long ago
    #[arg(long, value_name = "TIME|DURATION", value_parser = since)]
    since: Option<Since>,
    /// With the oldest outcome that is kept
    #[arg(long)]
    earliest: bool,
    /// With every matching job that has ended already
    #[arg(long)]
    existing: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum OnGap {
    /// End with an error
    #[default]
    Fail,
    /// Say so, and go on with the oldest outcome that is kept
    Continue,
}

impl Watch {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let live = !self.job_ids.is_empty() && shell.format() == Format::Table && shell.is_terminal();
        let mut view = match shell.format() {
            Format::Json => View::Json,
            Format::Table if live => View::Live(Live::new(self.job_ids.len())),
            Format::Table => View::Lines,
        };
        let until_done = self.until_done;
        let client = shell.connect().await?;
        let mut unsuccessful = BTreeSet::new();
        let mut unseen: BTreeSet<String> = self.job_ids.iter().filter(|_| until_done).cloned().collect();
        let mut messages = client.watch(self.into_request(live));
        while let Some(message) = messages.next().await {
            let message = message?;
            if let Some(Event::Finished(job)) = message.event.as_ref().filter(|_| until_done) {
                note_outcome(&mut unsuccessful, job);
                unseen.remove(&job.job_id);
            }
            view.show(shell, &message)?;
        }
        // Their ends were before the start, in a gap, or not what was to be shown.
        for job_id in unseen {
            let job = client.get(GetJobRequest { job_id, ..GetJobRequest::default() }).await?;
            note_outcome(&mut unsuccessful, &job);
        }
        Ok(if unsuccessful.is_empty() { 0 } else { 1 })
    }

    fn into_request(self, live: bool) -> WatchResultsRequest {
        let start = self.start.after.map(Start::AfterCursor);
        let start = start.or(self.start.since.map(|since| match since {
            Since::Time(time) => Start::SinceTime(time),
            Since::Ago(ago) => Start::Lookback(ago),
        }));
        let start = start.or(self.start.earliest.then_some(Start::Earliest(true)));
        let on_gap = match self.on_gap {
            OnGap::Fail => watch_results_request::OnGap::Fail,
            OnGap::Continue => watch_results_request::OnGap::Continue,
        };
        WatchResultsRequest {
            include_existing: start.is_none() && (self.start.existing || !self.job_ids.is_empty()),
            filter: Some(self.filter.into_filter(self.job_ids)),
            start,
            until_all_done: self.until_done,
            include_progress: self.progress || live,
            include_transitions: self.transitions || live,
            on_gap: on_gap.into(),
            max_inline_output_bytes: self.max_output_bytes,
            ..WatchResultsRequest::default()
        }
    }
}

/// A job that is run again may succeed after all.
fn note_outcome(unsuccessful: &mut BTreeSet<String>, job: &Job) {
    if job.state() == State::Succeeded {
        unsuccessful.remove(&job.job_id);
    } else {
        unsuccessful.insert(job.job_id.clone());
    }
}

/// How messages are shown.
enum View {
    Json,
    Lines,
    Live(Live),
}

impl View {
    fn show(&mut self, shell: &Shell, message: &WatchResultsResponse) -> Result<(), Error> {
        // Checkpoints are for programs that keep the cursor themselves; the client does it here.
        let Some(event) = message.event.as_ref().filter(|event| !matches!(event, Event::Checkpoint(_)))
        else {
            return Ok(());
        };
        match self {
            Self::Json => shell.print_item(message),
            Self::Lines => shell.line(&line(event)),
            Self::Live(live) => live.show(event),
        }
    }
}

fn line(event: &Event) -> String {
    match event {
        Event::Finished(job) | Event::Changed(job) => table::line(job),
        Event::Progress(progress) => progress_line(progress),
        Event::Gap(gap) => gap_line(gap),
        Event::Checkpoint(_) => String::new(),
    }
}

fn progress_line(event: &JobProgress) -> String {
    let progress = event.progress.clone().unwrap_or_default();
    let percent = progress.fraction * 100.0;
    let note = table::plain(&progress.note);
    let line = format!(
        "{:<19}  {percent:>9.0} %  {}  {note}",
        table::time(progress.update_time),
        table::plain(&event.job_id)
    );
    line.trim_end().to_owned()
}

/// What to say of outcomes that cannot be had any more.
pub(super) fn gap_line(gap: &Gap) -> String {
    let missed = match gap.missed_events {
        0 => "some outcomes".to_owned(),
        1 => "1 outcome".to_owned(),
        many => format!("{many} outcomes"),
    };
    format!("missed {missed}, no longer kept: `jobwire list` shows the jobs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(after: Option<&str>, existing: bool) -> StartArgs {
        StartArgs { after: after.map(str::to_owned), since: None, earliest: false, existing }
    }

    fn watch(job_ids: &[&str], start: StartArgs) -> Watch {
        Watch {
            job_ids: job_ids.iter().map(|id| (*id).to_owned()).collect(),
            filter: FilterArgs::default(),
            start,
            until_done: false,
            progress: false,
            transitions: false,
            on_gap: OnGap::Fail,
            max_output_bytes: None,
        }
    }

    #[test]
    fn jobs_that_are_named_are_shown_even_if_they_have_ended() {
        assert!(watch(&["a"], start(None, false)).into_request(false).include_existing);
        assert!(!watch(&["a"], start(Some("c"), false)).into_request(false).include_existing);
        assert!(!watch(&[], start(None, false)).into_request(false).include_existing);
        assert!(watch(&[], start(None, true)).into_request(false).include_existing);
    }

    #[test]
    fn a_live_view_asks_for_what_it_shows() {
        let request = watch(&["a"], start(None, false)).into_request(true);
        assert!(request.include_progress && request.include_transitions);
    }

    #[test]
    fn the_newest_outcome_of_a_job_counts() {
        let job = |state: State| Job { job_id: "a".into(), state: state.into(), ..Job::default() };
        let mut unsuccessful = BTreeSet::new();
        note_outcome(&mut unsuccessful, &job(State::Failed));
        assert_eq!(unsuccessful.len(), 1);
        note_outcome(&mut unsuccessful, &job(State::Succeeded));
        assert!(unsuccessful.is_empty());
    }

    #[test]
    fn a_gap_is_told() {
        assert!(gap_line(&Gap { missed_events: 3, ..Gap::default() }).starts_with("missed 3 outcomes"));
        assert!(gap_line(&Gap::default()).starts_with("missed some outcomes"));
    }
}
