use clap::Args;

use super::{Error, Shell, shell::Format, table};

const EXAMPLES: &str = "\
Examples:
  jobwire info
  jobwire info --server jobs.example.org:50051 -o json";

/// Show the server's version, limits and features
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Info {}

impl Info {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let info = shell.connect().await?.info().await?;
        if shell.format() == Format::Json {
            shell.print(&info)?;
            return Ok(0);
        }
        let limits = info.limits.unwrap_or_default();
        let mut rows = table::table(&[]);
        for (name, value) in [
            ("version", info.version),
            ("instance", info.instance_id),
            ("log", info.log_id),
            ("features", info.features.join(" ")),
            ("largest payload", format!("{} bytes", limits.max_payload_bytes)),
            ("largest output", format!("{} bytes", limits.max_output_bytes)),
            ("largest message", format!("{} bytes", limits.max_message_bytes)),
            ("largest batch", format!("{} jobs", limits.max_batch_items)),
            ("longest wait", table::span(limits.max_wait)),
            ("outcomes kept", table::span(limits.watch_retention)),
            ("request ids kept", table::span(limits.request_id_window)),
        ] {
            rows.add_row([name.to_owned(), table::plain(&value)]);
        }
        shell.line(&table::text(rows))?;
        Ok(0)
    }
}
