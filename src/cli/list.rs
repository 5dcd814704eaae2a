use clap::Args;
use futures_util::StreamExt as _;

use super::{
    Error, Shell,
    filter::FilterArgs,
    shell::{Format, say},
    table,
};
use crate::proto::{ListJobsRequest, ListJobsResponse};

const EXAMPLES: &str = "\
Examples:
  jobwire list --state failed --queue mail
  jobwire list -l tenant=acme --submitted-after 2026-05-01T00:00:00Z --all
  jobwire list --state failed --all -o json | jq -r '.jobs[]?.jobId' | xargs -r jobwire retry

As JSON it prints one page in each line, with the token of the next page and a cursor for `jobwire watch --after`.";

/// Jobs of one page.
const MAX_PAGE: i32 = 1000;

/// List jobs, newest first
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct List {
    /// Jobs to show
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "all",
        value_parser = clap::value_parser!(i32).range(1..=i64::from(MAX_PAGE)))]
    limit: i32,
    /// Go on where another list ended
    #[arg(long, value_name = "TOKEN", default_value = "", hide_default_value = true)]
    page_token: String,
    /// Show all of them, page by page
    #[arg(long)]
    all: bool,
    /// Oldest first
    #[arg(long)]
    oldest_first: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

impl List {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let request = ListJobsRequest {
            filter: Some(self.filter.into_filter(Vec::new())),
            page_size: if self.all { MAX_PAGE } else { self.limit },
            page_token: self.page_token,
            oldest_first: self.oldest_first,
            ..ListJobsRequest::default()
        };
        let mut pages = shell.connect().await?.list(request);
        while let Some(page) = pages.next().await {
            show(shell, &page?, self.all)?;
            if !self.all {
                break;
            }
        }
        Ok(0)
    }
}

fn show(shell: &Shell, page: &ListJobsResponse, all: bool) -> Result<(), Error> {
    if shell.format() == Format::Json {
        return shell.print_item(page);
    }
    if !page.jobs.is_empty() {
        shell.line(&table::jobs(&page.jobs))?;
    }
    if !all && !page.next_page_token.is_empty() {
        say(format_args!("there are more: --page-token {}", page.next_page_token));
    }
    Ok(())
}
