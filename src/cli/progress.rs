//! A set of jobs on a terminal: one bar for all, one line for each job that is under way.

use std::{collections::BTreeMap, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Error, table, watch::gap_line};
use crate::proto::{Job, JobProgress, job::State, watch_results_response::Event};

/// Lines of jobs under way; more would push the bar off the screen.
const MAX_LINES: usize = 10;
/// The length of a job's bar: progress is a fraction.
const STEPS: u64 = 100;

pub(super) struct Live {
    screen: MultiProgress,
    total: ProgressBar,
    lines: BTreeMap<String, ProgressBar>,
}

impl Live {
    /// For `jobs` jobs in all.
    pub(super) fn new(jobs: usize) -> Self {
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let total = screen
            .add(ProgressBar::new(jobs as u64).with_style(style("{bar:30} {pos}/{len} done  {elapsed}")));
        total.enable_steady_tick(Duration::from_secs(1));
        Self { screen, total, lines: BTreeMap::new() }
    }

    pub(super) fn show(&mut self, event: &Event) -> Result<(), Error> {
        match event {
            Event::Finished(job) => self.finish(job)?,
            Event::Changed(job) => self.change(job),
            Event::Progress(progress) => self.advance(progress),
            Event::Gap(gap) => self.print(&gap_line(gap))?,
            Event::Checkpoint(_) => {}
        }
        Ok(())
    }

    fn finish(&mut self, job: &Job) -> Result<(), Error> {
        if let Some(line) = self.lines.remove(&job.job_id) {
            line.finish_and_clear();
            self.screen.remove(&line);
        }
        self.print(&table::line(job))?;
        self.total.inc(1);
        Ok(())
    }

    fn change(&mut self, job: &Job) {
        match job.state() {
            State::Running => {
                if let Some(line) = self.line(&job.job_id) {
                    line.set_message(format!("attempt {}", job.attempt));
                }
            }
            State::BackingOff => {
                let error = job.error.as_ref().map(table::error).unwrap_or_default();
                if let Some(line) = self.line(&job.job_id) {
                    line.set_message(format!("backing off: {error}"));
                }
            }
            _ => {}
        }
    }

    fn advance(&mut self, event: &JobProgress) {
        let progress = event.progress.clone().unwrap_or_default();
        if let Some(line) = self.line(&event.job_id) {
            line.set_position((progress.fraction.clamp(0.0, 1.0) * STEPS as f64) as u64);
            line.set_message(table::plain(&progress.note));
        }
    }

    /// The line of a job, a new one if there is room.
    fn line(&mut self, job_id: &str) -> Option<&ProgressBar> {
        if self.lines.len() >= MAX_LINES && !self.lines.contains_key(job_id) {
            return None;
        }
        let line = self.lines.entry(job_id.to_owned()).or_insert_with(|| {
            let style = style("  {bar:20} {prefix}  {wide_msg}");
            let line = ProgressBar::new(STEPS).with_style(style).with_prefix(table::plain(job_id));
            self.screen.insert_before(&self.total, line)
        });
        Some(line)
    }

    fn print(&self, text: &str) -> Result<(), Error> {
        self.screen.println(text).map_err(Error::Write)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.lines.values().for_each(ProgressBar::finish_and_clear);
        self.total.abandon();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
