use std::{io::Write as _, time::Duration};

use super::*;
use crate::config::ExecParam;

struct Layers {
    file: tempfile::NamedTempFile,
    sources: Sources,
    environment: Vec<(OsString, OsString)>,
}

fn layers(file: &str, environment: &[(&str, &str)]) -> Layers {
    let mut written = tempfile::Builder::new().prefix("jobwire").suffix(".toml").tempfile().unwrap();
    written.write_all(file.as_bytes()).unwrap();
    let sources = Sources { config: Some(written.path().to_owned()), ..Sources::default() };
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Layers { file: written, sources, environment }
}

impl Layers {
    fn load(&self) -> Result<Settings, Error> {
        Settings::load(&self.sources, self.environment.clone())
    }

    /// The error, with the file's path cut to `FILE`.
    fn refusal(&self) -> String {
        let error = self.load().unwrap_err().to_string();
        error.replace(&self.file.path().display().to_string(), "FILE")
    }
}

fn row(settings: &Settings, key: &str) -> (String, String) {
    let row = settings.rows().unwrap().into_iter().find(|row| row.key == key).unwrap();
    (row.value.to_string(), row.source)
}

#[test]
fn without_layers_there_are_the_defaults() {
    let settings = Settings::load(&Sources::default(), []).unwrap();
    assert_eq!(settings.config.listen.port(), 50051);
    assert!(settings.rows().unwrap().iter().all(|row| row.source == "default"));
    assert_eq!(row(&settings, "limits.max_wait"), ("\"45s\"".into(), "default".into()));
}

#[test]
fn a_directory_is_not_passed_over_for_a_database() {
    let mut layers = layers("", &[("JOBWIRE_STORE", "postgres://127.0.0.1/x")]);
    assert!(layers.load().unwrap().config.store.url.is_some());
    layers.sources.data = Some("here".into());
    assert_eq!(
        layers.refusal(),
        "flag --data: jobs are kept in the database that is named by environment JOBWIRE_STORE: take that away, or the flag"
    );
    // Both were just asked for: the database it is.
    layers.sources.store = Some("postgres://127.0.0.1/y".into());
    assert!(layers.load().unwrap().config.store.url.is_some());
}

/// A service that is called `jobwire` is told to all programs of its namespace.
#[test]
fn variables_of_kubernetes_are_no_settings() {
    let told = [
        ("JOBWIRE_SERVICE_HOST", "10.0.0.1"),
        ("JOBWIRE_SERVICE_PORT", "50051"),
        ("JOBWIRE_SERVICE_PORT_GRPC", "50051"),
        ("JOBWIRE_PORT", "tcp://10.0.0.1:50051"),
        ("JOBWIRE_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("JOBWIRE_WEB_SERVICE_HOST", "10.0.0.2"),
        ("JOBWIRE_WEB_PORT", "tcp://10.0.0.2:80"),
    ];
    layers("", &told).load().unwrap();
    let queue = layers("", &[("JOBWIRE_QUEUES__DATA_PORT__CONCURRENCY", "3")]).load().unwrap();
    assert_eq!(queue.config.queues["data_port"].concurrency, Some(3));
    assert!(layers("", &[("JOBWIRE_PORT", "8080")]).refusal().contains("`port`"));
}

#[test]
fn later_layers_win_and_show_says_which() {
    let file = "listen = \"127.0.0.1:1\"\n[limits]\nmax_wait = \"10s\"\nmax_waits = 7\n\n[watch]\nmax_watchers = 5\n";
    let mut layers = layers(file, &[("JOBWIRE_LIMITS__MAX_WAIT", "20s"), ("JOBWIRE_LISTEN", "127.0.0.1:2")]);
    layers.sources.listen = Some("127.0.0.1:3".into());
    let settings = layers.load().unwrap();
    assert_eq!(settings.config.listen.port(), 3);
    assert_eq!(settings.config.limits.max_wait, Duration::from_secs(20));
    assert_eq!(settings.config.limits.max_waits, 7);
    assert_eq!(row(&settings, "listen").1, "flag --listen");
    assert_eq!(row(&settings, "limits.max_wait").1, "environment JOBWIRE_LIMITS__MAX_WAIT");
    let (value, source) = row(&settings, "watch.max_watchers");
    assert_eq!(value, "5");
    assert_eq!(source, format!("{}:7", layers.file.path().display()));
}

#[test]
fn the_environment_has_the_type_that_the_setting_asks_for() {
    let settings = layers(
        "",
        &[
            ("JOBWIRE_DATA", "42"),
            ("JOBWIRE_HTTP__ENABLED", "false"),
            ("JOBWIRE_DEFAULTS__BACKOFF_MULTIPLIER", "3"),
            ("JOBWIRE_QUEUES__MAIL__CONCURRENCY", "8"),
            ("JOBWIRE_QUEUES__MAIL__RETENTION", "1h 30m"),
            ("JOBWIRE_WEB__ALLOWED_ORIGINS", "https://a.example, https://b.example"),
            ("JOBWIRE_HTTP__ALLOW_NETWORKS", "10.0.0.0/8"),
        ],
    );
    let config = settings.load().unwrap().config;
    assert_eq!(config.data, PathBuf::from("42"));
    assert!(!config.http.enabled);
    assert_eq!(config.defaults.backoff_multiplier, 3.0);
    assert_eq!(config.queues["mail"].concurrency, Some(8));
    assert_eq!(config.queues["mail"].retention, Some(Duration::from_secs(5400)));
    assert_eq!(config.web.allowed_origins, ["https://a.example", "https://b.example"]);
    assert_eq!(config.http.allow_networks.len(), 1);
}

#[test]
fn variables_of_the_command_line_are_no_settings() {
    let names = [("JOBWIRE_SERVER", "x"), ("JOBWIRE_CONFIG", "x"), ("JOBWIRE_LOG", "debug"), ("PATH", "x")];
    layers("", &names).load().unwrap();
}

#[test]
fn unknown_keys_are_refused_with_a_suggestion() {
    for (file, refusal) in [
        (
            "\n[limits]\nmax_wat = \"1s\"",
            "FILE:3: `limits.max_wat` is not a setting; did you mean `limits.max_wait`?",
        ),
        ("[limit]\n", "FILE:1: `limit` is not a setting; did you mean `limits`?"),
        ("lisen = 1", "FILE:1: `lisen` is not a setting; did you mean `listen`?"),
        (
            "[queues.mail]\nconcurency = 1",
            "FILE:2: `queues.mail.concurency` is not a setting; did you mean `queues.mail.concurrency`?",
        ),
        ("[exec]\nallow = 1", "FILE:2: `exec.allow` is not a setting; there are commands"),
    ] {
        assert_eq!(layers(file, &[]).refusal(), refusal);
    }
    assert_eq!(
        layers("", &[("JOBWIRE_LIMITS__MAX_WAITT", "1s")]).refusal(),
        "environment JOBWIRE_LIMITS__MAX_WAITT: `limits.max_waitt` is not a setting; \
         did you mean `JOBWIRE_LIMITS__MAX_WAIT`?"
    );
}

#[test]
fn wrong_types_and_values_name_their_place() {
    for (file, refusal) in [
        (
            "[limits]\nmax_waits = \"many\"",
            "FILE:2: `limits.max_waits` is string \"many\", but must be usize",
        ),
        ("[limits]\nmax_waits = -1", "FILE:2: `limits.max_waits` is integer `-1`, but must be usize"),
        ("limits = 3", "FILE:1: `limits` is integer `3`, but must be struct Limits"),
        ("[limits]\nmax_waits = 0", "FILE:2: `limits.max_waits` is 0; it must be 1 to 1000000"),
    ] {
        assert_eq!(layers(file, &[]).refusal(), refusal);
    }
    for (file, place) in [
        ("[limits]\nmax_wait = \"-5s\"", "FILE:2: `limits.max_wait` "),
        ("[limits]\nmax_wait = \"soon\"", "FILE:2: `limits.max_wait` "),
        ("[limits]\nmax_wait = 5", "FILE:2: `limits.max_wait` "),
        ("\nlisten = \"here\"", "FILE:2: `listen` "),
        ("[http]\nallow_networks = [\n\"10.0.0.0/8\",\n\"ten\"]", "FILE:4: `http.allow_networks[1]` "),
        ("[exec.commands.hash]\nargs = []", "FILE:1: `exec.commands.hash` lacks `program`"),
        ("[queues.Mail]\nmax_attempts = 1", "FILE:2: `queues.Mail` "),
        ("[http]\nallow_hosts = [\"http://a\"]", "FILE:2: `http.allow_hosts[0]` "),
        (
            "[exec.commands.a]\nprogram = \"/a\"\nparams.x = { type = \"word\" }",
            "FILE:3: `exec.commands.a.params.x.type` ",
        ),
    ] {
        let refusal = layers(file, &[]).refusal();
        assert!(refusal.starts_with(place), "{refusal}");
    }
}

#[test]
fn wrong_values_in_the_environment_name_the_variable() {
    for (name, value, refusal) in [
        ("JOBWIRE_LIMITS__MAX_WAITS", "many", "`limits.max_waits` is `many`, but must be a whole number"),
        ("JOBWIRE_HTTP__ENABLED", "yes", "`http.enabled` is `yes`, but must be true or false"),
        (
            "JOBWIRE_DEFAULTS__BACKOFF_MULTIPLIER",
            "x",
            "`defaults.backoff_multiplier` is `x`, but must be a number",
        ),
        ("JOBWIRE_LIMITS", "5", "`limits` is string \"5\", but must be struct Limits"),
    ] {
        let found = layers("", &[(name, value)]).refusal();
        assert_eq!(found, format!("environment {name}: {refusal}"));
    }
}

#[test]
fn a_group_is_no_value() {
    let refusal = layers("[limits]\nmax_waits = 1", &[("JOBWIRE_LIMITS", "5")]).refusal();
    assert_eq!(
        refusal,
        "environment JOBWIRE_LIMITS: `limits` is a group of settings in one place and a value in another (FILE:1)"
    );
}

#[test]
fn commands_have_typed_parameters() {
    let file = r#"
        [exec.commands.hash]
        program = "/usr/bin/sha256sum"
        args = ["--", "{file}"]
        params.file = { type = "path", root = "/srv/in" }
    "#;
    let config = layers(file, &[]).load().unwrap().config;
    let param = &config.exec.commands["hash"].params["file"];
    assert!(matches!(param, ExecParam::Path { root } if root == Path::new("/srv/in")));
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let sources = Sources { config: Some("/nonexistent/jobwire.toml".into()), ..Sources::default() };
    let error = Settings::load(&sources, []).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the configuration /nonexistent/jobwire.toml: "), "{error}");
    let refusal = layers("[limits\n", &[]).refusal();
    assert!(refusal.starts_with("FILE is not TOML: TOML parse error at line 1"), "{refusal}");
}

#[test]
fn the_store_is_a_url_whose_password_is_not_shown() {
    let file = "[store]\nurl = \"postgres://file/jobs\"\nreserve_bytes = 7\n";
    let mut layers = layers(file, &[]);
    let url = |settings: &Settings| settings.config.store.url.as_ref().unwrap().reveal().to_owned();
    assert_eq!(url(&layers.load().unwrap()), "postgres://file/jobs");
    layers
        .environment
        .push(("JOBWIRE_STORE".into(), "postgres://ada:se@cret@variable/jobs?password=x".into()));
    let settings = layers.load().unwrap();
    assert_eq!(url(&settings), "postgres://ada:se@cret@variable/jobs?password=x");
    let shown = ("\"postgres://ada:***@variable/jobs?***\"".into(), "environment JOBWIRE_STORE".into());
    assert_eq!((row(&settings, "store.url"), settings.config.store.reserve_bytes), (shown, 7));
    layers.sources.store = Some("postgresql://flag/jobs".into());
    assert_eq!(url(&layers.load().unwrap()), "postgresql://flag/jobs");
    layers.sources.store = Some("mysql://flag/jobs".into());
    assert_eq!(layers.refusal(), "flag --store: `store.url` must begin with postgres://");
}
