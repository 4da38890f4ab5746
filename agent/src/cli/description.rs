//! A function's description: from a file, from arguments, or both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use snapback_proto::cpu::CpuTemplate;
use snapback_proto::ids::FunctionName;
use toml::{Table, Value};

use super::Connection;
use crate::function::{FunctionConfig, default_memory, default_timeout};
use crate::keys;
use crate::logging::{Format, Level, LoggingConfig};

/// Arguments win over the file.
#[derive(Debug, Args)]
pub(super) struct CreateArguments {
    /// 1 to 64 letters, digits, `-` or `_` [default: the file's].
    #[arg(required_unless_present = "file")]
    name: Option<FunctionName>,
    /// A description of the function (TOML): the arguments' words in Lambda's spelling, `code`
    /// and `layers` being paths from the file's folder.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// python3.11, nodejs18.x, or provided.al2023 for code that brings its own `bootstrap` and
    /// for container images.
    #[arg(long, required_unless_present = "file")]
    runtime: Option<String>,
    /// For example app.handler. Code that brings its own `bootstrap` needs none.
    #[arg(long)]
    handler: Option<String>,
    /// The code: a folder, a zip, or a container image (an OCI image layout, as a folder or a
    /// tar archive) [default: the file's folder].
    #[arg(long, value_name = "PATH", required_unless_present = "file")]
    code: Option<PathBuf>,
    /// A layer, a folder or a zip; may be given several times, and replaces the file's.
    #[arg(long = "layer", value_name = "PATH")]
    layers: Vec<PathBuf>,
    /// Memory, in MiB [default: 128].
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// How long a request may run, in seconds [default: 3].
    #[arg(long, value_name = "S")]
    timeout: Option<u32>,
    /// How much /tmp may hold, in MiB; at most half of the memory [default: that half, or 512].
    #[arg(long, value_name = "MIB")]
    ephemeral_storage: Option<u32>,
    /// Which processor the function sees: host, x86-64-v2, x86-64-v3 or x86-64-v4 [default: host].
    #[arg(long, value_name = "TEMPLATE")]
    cpu_template: Option<CpuTemplate>,
    /// An environment variable; may be given several times, and adds to the file's.
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// What log lines look like, the function's and the platform's [default: text].
    #[arg(long, value_enum)]
    log_format: Option<Format>,
    /// Which lines a function that logs JSON leaves out.
    #[arg(long, value_enum)]
    log_level: Option<Level>,
    /// Print the function as JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub connection: Connection,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A description, and where what has to be sent is.
pub(super) struct Package {
    /// Without the hashes of layers.
    pub config: FunctionConfig,
    /// The code.
    pub code: PathBuf,
    /// The layers, in their order.
    pub layers: Vec<PathBuf>,
}

impl CreateArguments {
    /// What file and arguments say together.
    pub fn package(&self) -> anyhow::Result<Package> {
        let mut package = match &self.file {
            Some(file) => {
                read(file).with_context(|| format!("{} describes no function", file.display()))?
            }
            None => self.bare()?,
        };
        let config = &mut package.config;
        if let Some(name) = &self.name {
            config.name = name.clone();
        }
        if let Some(runtime) = &self.runtime {
            config.runtime.clone_from(runtime);
        }
        if let Some(handler) = &self.handler {
            config.handler.clone_from(handler);
        }
        if let Some(memory_mb) = self.memory {
            config.memory_mb = memory_mb;
        }
        if let Some(timeout_s) = self.timeout {
            config.timeout_s = timeout_s;
        }
        if self.ephemeral_storage.is_some() {
            config.ephemeral_storage_mb = self.ephemeral_storage;
        }
        if let Some(template) = self.cpu_template {
            config.cpu_template = template;
        }
        if let Some(format) = self.log_format {
            config.logging.format = format;
        }
        if self.log_level.is_some() {
            config.logging.application_log_level = self.log_level;
        }
        config.environment.extend(self.environment.iter().cloned());
        if let Some(code) = &self.code {
            package.code.clone_from(code);
        }
        if !self.layers.is_empty() {
            package.layers.clone_from(&self.layers);
        }
        Ok(package)
    }

    /// A description without a file: the parser has seen to what it needs.
    fn bare(&self) -> anyhow::Result<Package> {
        let name = self.name.clone().context("the function needs a name")?;
        Ok(Package {
            config: FunctionConfig {
                name,
                description: String::new(),
                runtime: String::new(),
                handler: String::new(),
                memory_mb: default_memory(),
                timeout_s: default_timeout(),
                ephemeral_storage_mb: None,
                cpu_template: CpuTemplate::default(),
                environment: BTreeMap::new(),
                layers: Vec::new(),
                logging: LoggingConfig::default(),
            },
            code: PathBuf::new(),
            layers: Vec::new(),
        })
    }
}

fn read(file: &Path) -> anyhow::Result<Package> {
    let mut table: Table = fs::read_to_string(file)?.parse()?;
    keys::check(table.keys())?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let code = match table.remove("code") {
        None => folder.to_owned(),
        Some(Value::String(path)) => folder.join(path),
        Some(_) => bail!("`code` is a path"),
    };
    let layers = match table.remove("layers") {
        None => Vec::new(),
        Some(Value::Array(paths)) => paths
            .iter()
            .map(|path| Some(folder.join(path.as_str()?)))
            .collect::<Option<Vec<_>>>()
            .context("`layers` is a list of paths")?,
        Some(_) => bail!("`layers` is a list of paths"),
    };
    let config = table.try_into()?;
    Ok(Package {
        config,
        code,
        layers,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: CreateArguments,
    }

    fn package(words: &[&str]) -> anyhow::Result<Package> {
        let words = [&["create"], words].concat();
        Line::try_parse_from(words)?.create.package()
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("function.toml");
        fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path)
    }

    #[test]
    fn a_file_says_everything_and_arguments_win_over_it() {
        let text = "name = 'f'\nruntime = 'python3.11'\nhandler = 'app.handler'\nmemory_mb = 256\n\
            code = 'src'\nlayers = ['one', 'two.zip']\nenvironment = { A = '1', B = '2' }\n";
        let (folder, path) = file(text);
        let alone = package(&["--file", &path]).unwrap();
        assert_eq!(alone.config.name.as_str(), "f");
        assert_eq!((alone.config.memory_mb, alone.config.timeout_s), (256, 3));
        assert_eq!(alone.code, folder.path().join("src"));
        let layers = ["one", "two.zip"].map(|layer| folder.path().join(layer));
        assert_eq!(alone.layers, layers);

        let words = [
            "g", "--file", &path, "--memory", "512", "--env", "B=3", "--layer", "mine",
        ];
        let changed = package(&words).unwrap();
        assert_eq!(changed.config.name.as_str(), "g");
        assert_eq!(changed.config.memory_mb, 512);
        let environment: Vec<_> = changed.config.environment.into_iter().collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(environment, [pair("A", "1"), pair("B", "3")]);
        assert_eq!(changed.layers, [PathBuf::from("mine")]);
    }

    #[test]
    fn a_files_own_folder_is_the_code_when_it_names_none() {
        let (folder, path) = file("name = 'f'\nruntime = 'provided'\n");
        assert_eq!(package(&["--file", &path]).unwrap().code, folder.path());
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_by_its_name_and_key() {
        for (text, words) in [
            (
                "name = 'f'\nMemorySize = 1\n",
                "the key `MemorySize` is not known: is `memory_mb` meant?",
            ),
            ("name = 'f'\ncode = 1\n", "`code` is a path"),
            ("layers = 'one'\n", "`layers` is a list of paths"),
            ("name = 'a b'\n", "name"),
            ("name = ", "line 1"),
        ] {
            let (_folder, path) = file(text);
            let error = package(&["--file", &path]).err().unwrap();
            let error = format!("{error:#}");
            assert!(error.contains(words) && error.contains(&path), "{error}");
        }
    }

    #[test]
    fn without_a_file_name_runtime_and_code_are_needed() {
        for words in [
            &["f"][..],
            &["f", "--runtime", "provided"],
            &["--runtime", "provided", "--code", "."],
        ] {
            assert!(package(words).is_err(), "{words:?}");
        }
        package(&["f", "--runtime", "provided", "--code", "."]).unwrap();
    }
}
