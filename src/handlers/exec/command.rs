use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::Path,
    sync::Arc,
};

use serde_json::Value;
use tokio::sync::Semaphore;

use super::{
    param,
    template::{Template, check_name},
};
use crate::{
    config::{self, ExecCommand},
    handlers::typed::invalid,
    job::{Error, JobError},
};

/// A command of the configuration, found to be sound.
#[derive(Debug)]
pub struct Command {
    pub settings: ExecCommand,
    pub args: Vec<Template>,
    /// One for each process that may run.
    pub permits: Arc<Semaphore>,
}

impl Command {
    /// Checks the command called `name`. An error names the key of the setting that is wrong.
    pub fn check(name: &str, settings: &ExecCommand) -> Result<Self, Error> {
        let path = config::key("exec.commands", name);
        let key = |rest: &str| format!("{path}.{rest}");
        let fail = |rest: &str, why: &str| Err(Error::invalid(key(rest), why));
        let has_nul = |text: &OsStr| text.as_encoded_bytes().contains(&0);

        if !settings.program.is_absolute() || has_nul(settings.program.as_os_str()) {
            return fail("program", "must be an absolute path: nothing is looked up in PATH");
        }
        if settings.dir.as_deref().is_some_and(|dir| !dir.is_absolute() || has_nul(dir.as_os_str())) {
            return fail("dir", "must be an absolute path; leave it out for a new empty directory");
        }
        if !(1..=Semaphore::MAX_PERMITS).contains(&settings.concurrency) {
            return fail("concurrency", "must be 1 or more");
        }
        for (variable, value) in &settings.env {
            if variable.is_empty() || variable.contains(['=', '\0']) || value.contains('\0') {
                return fail(
                    &config::key("env", variable),
                    "is no variable of an environment: = and NUL are not allowed",
                );
            }
        }
        for (param, sort) in &settings.params {
            check_name(param)
                .and_then(|()| param::check(sort))
                .map_err(|why| Error::invalid(key(&config::key("params", param)), why))?;
        }
        Ok(Self {
            args: templates(settings, &key)?,
            permits: Arc::new(Semaphore::new(settings.concurrency)),
            settings: settings.clone(),
        })
    }

    /// The arguments with the values of a job in place.
    pub async fn arguments(&self, values: &BTreeMap<String, Value>) -> Result<Vec<OsString>, JobError> {
        let params = &self.settings.params;
        if let Some(unknown) = values.keys().find(|name| !params.contains_key(*name)) {
            let known: Vec<_> = params.keys().map(String::as_str).collect();
            return Err(invalid(format!(
                "params.{unknown}: no such parameter; there are: {}",
                known.join(", ")
            )));
        }
        let mut rendered = BTreeMap::new();
        for (name, sort) in params {
            let value = values.get(name).ok_or_else(|| invalid(format!("params.{name}: is missing")))?;
            let text =
                param::render(sort, value).await.map_err(|why| invalid(format!("params.{name}: {why}")))?;
            rendered.insert(name.as_str(), text);
        }
        self.args.iter().map(|template| self.argument(template, &rendered)).collect()
    }

    fn argument(
        &self,
        template: &Template,
        rendered: &BTreeMap<&str, OsString>,
    ) -> Result<OsString, JobError> {
        let (argument, first) =
            template.fill(|name| rendered.get(name).map_or(OsStr::new(""), OsString::as_os_str));
        if let Some(name) = first
            && argument.as_encoded_bytes().starts_with(b"-")
            && !self.settings.params.get(name).is_some_and(param::may_begin_with_dash)
        {
            return Err(invalid(format!(
                "params.{name}: must not begin with \"-\", it would be read as an option; the server's configuration can allow it"
            )));
        }
        Ok(argument)
    }

    /// What to call it in messages.
    pub fn program(&self) -> &Path {
        &self.settings.program
    }
}

/// Reads the arguments and sees that placeholders and parameters belong together.
fn templates(settings: &ExecCommand, key: &dyn Fn(&str) -> String) -> Result<Vec<Template>, Error> {
    let mut templates = Vec::with_capacity(settings.args.len());
    for (i, arg) in settings.args.iter().enumerate() {
        let fail = |why: String| Error::invalid(key(&format!("args[{i}]")), why);
        let template = Template::parse(arg).map_err(fail)?;
        if let Some(name) = template.params().find(|name| !settings.params.contains_key(*name)) {
            return Err(fail(format!("{{{name}}} has no entry in params: add params.{name}")));
        }
        templates.push(template);
    }
    let used = |name: &str| templates.iter().any(|template| template.params().any(|param| param == name));
    match settings.params.keys().find(|name| !used(name)) {
        Some(name) => {
            let why = format!("no argument has {{{name}}}: add it to args, or remove the parameter");
            Err(Error::invalid(key(&config::key("params", name)), why))
        }
        None => Ok(templates),
    }
}
