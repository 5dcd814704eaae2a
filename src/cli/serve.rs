use std::{
    env,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use clap::Args;

use super::{
    Error, Shell,
    logs::{self, LogFormat},
    settings::{Settings, Sources},
};
use crate::server;

const EXAMPLES: &str = "\
Examples:
  jobwire serve
  jobwire serve --listen 127.0.0.1:0 --data /var/lib/jobwire
  jobwire serve --config jobwire.toml --log-format json
  JOBWIRE_WORKERS__CONCURRENCY=64 jobwire serve

Settings: defaults, then the file, then JOBWIRE_* variables (limits.max_wait is JOBWIRE_LIMITS__MAX_WAIT), \
then flags; `jobwire config show` prints them all. JOBWIRE_LOG chooses the log lines, such as `debug` or `jobwire=debug`.

SIGTERM or Ctrl-C lets running jobs finish first; a second one stops at once.";

/// Start a server
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Serve {
    #[command(flatten)]
    sources: Sources,
    /// How log lines look
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

impl Serve {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        logs::of_a_server(self.log_format)?;
        let settings = Settings::load(&self.sources, env::vars_os())?;
        let ready = |address| announce(shell, address);
        server::run(settings.config, ready).await?;
        Ok(0)
    }
}

/// Says where the server is: programs read the first line, people the rest.
fn announce(shell: &Shell, address: SocketAddr) {
    // Whoever started the server may have closed stdout: no reason not to serve.
    let _ = shell.line(&format!("listening on {address}"));
    if shell.is_terminal() {
        let _ = shell.line(&first_steps(address));
    }
}

fn first_steps(address: SocketAddr) -> String {
    let ip = if address.ip().is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { address.ip() };
    let address = SocketAddr::new(ip, address.port());
    let server = if address.port() == 50051 && ip == IpAddr::from(Ipv4Addr::LOCALHOST) {
        String::new()
    } else {
        format!(" --server {address}")
    };
    format!(
        r#"
Try it from another terminal:
  jobwire run echo --json '{{"hello":"world"}}'{server}
  jobwire watch --since 1h{server}
  grpcurl -plaintext -d '{{"spec":{{"kind":"echo","payload":{{"json":{{"hello":"world"}}}}}},"wait":"10s"}}' \
    {address} jobwire.v1.JobService/Submit
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_steps_name_the_server_only_where_needed() {
        let default = first_steps("127.0.0.1:50051".parse().unwrap());
        assert!(!default.contains("--server"), "{default}");
        let other = first_steps("0.0.0.0:7000".parse().unwrap());
        assert!(other.contains("--server 127.0.0.1:7000"), "{other}");
    }
}
