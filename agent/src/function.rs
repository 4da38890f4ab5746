//! What a function is: Lambda's words in `snake_case`, checked in one place.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapback_proto::cpu::CpuTemplate;
use snapback_proto::guest::{Init, VsockAccess};
use snapback_proto::ids::FunctionName;
use snapback_vmm::snapshot::Digest;
use snapback_vmm::snapshot::manifest::Machine;

use crate::logging::LoggingConfig;

/// Virtual processors of every function's machine.
const VCPUS: u8 = 1;

/// Lambda's names of the runtimes, and the root file system that each one runs in.
/// Decision 0017 says which names are taken, and why no others.
pub const RUNTIMES: [(&str, &str); 5] = [
    ("nodejs18.x", "nodejs"),
    ("provided", PROVIDED),
    ("provided.al2", PROVIDED),
    ("provided.al2023", PROVIDED),
    ("python3.11", "python"),
];

/// The root file system of functions that bring their own `bootstrap`.
const PROVIDED: &str = "provided";

/// Region and account in the ARNs of this host's functions.
pub const ARN_PREFIX: &str = "arn:aws:lambda:local:000000000000:function:";

/// The region in them, and in a function's environment.
const REGION: &str = "local";

/// The only version that there is.
pub const VERSION: &str = "$LATEST";

/// Most layers, as Lambda has it.
pub const MAX_LAYERS: usize = 5;
/// Longest description for people, in characters, as Lambda has it.
const MAX_DESCRIPTION: usize = 256;
/// Longest handler, in characters.
const MAX_HANDLER: usize = 128;
/// Least memory, in MiB: less does not boot a guest with a runtime.
const MIN_MEMORY_MB: u32 = 64;
/// Room in `/tmp`, in MiB: Lambda's default, least and most.
const DEFAULT_STORAGE_MB: u32 = 512;
const MIN_STORAGE_MB: u32 = 64;
const MAX_STORAGE_MB: u32 = 10_240;
/// Longest timeout, in seconds.
const MAX_TIMEOUT_S: u32 = 900;
/// Names and values of all environment variables together, in bytes.
const MAX_ENVIRONMENT: usize = 4096;

/// Variables that belong to the runtime; setting one would break it.
const RESERVED: [&str; 10] = [
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
];
const RESERVED_PREFIX: &str = "AWS_LAMBDA_";

/// A function's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionConfig {
    /// 1 to 64 letters, digits, `-` or `_`.
    #[schema(value_type = String)]
    pub name: FunctionName,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// `python3.11`, `nodejs18.x`, or `provided.al2023` for code that brings its own
    /// `bootstrap` and for container images.
    pub runtime: String,
    /// For example `app.handler`. Code that brings its own `bootstrap` needs none.
    #[serde(default)]
    pub handler: String,
    /// Memory, in MiB.
    #[serde(default = "default_memory")]
    pub memory_mb: u32,
    /// How long a request may run, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout_s: u32,
    /// How much `/tmp` may hold, in MiB, from 64 to 10,240. It is in memory, so at most half of
    /// `memory_mb`; when it is not said, that half, or 512 if that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 64, maximum = 10240)]
    pub ephemeral_storage_mb: Option<u32>,
    /// Which processor its guests see: `host` for everything that this host has, or
    /// `x86-64-v2`, `-v3`, `-v4` for a snapshot that other hosts can restore.
    #[serde(default)]
    #[schema(value_type = String)]
    pub cpu_template: CpuTemplate,
    /// Environment variables.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Hashes of what is put together at `/opt`, from `POST /v1/code`; of two files of one
    /// name, the later layer's is taken. At most 5.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, max_items = 5)]
    pub layers: Vec<Digest>,
    /// What its log lines look like.
    #[serde(default)]
    pub logging: LoggingConfig,
}

/// As Lambda has it.
#[must_use]
pub const fn default_memory() -> u32 {
    128
}

/// As Lambda has it.
#[must_use]
pub const fn default_timeout() -> u32 {
    3
}

/// A configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFunction {
    /// There is no such runtime.
    #[error("runtime {0:?} is not known; there is: {known}", known = known_runtimes())]
    Runtime(String),
    /// The handler is empty, too long or has spaces.
    #[error(
        "the handler is {0:?}, and must be 1 to {MAX_HANDLER} characters without spaces, \
         for example `app.handler`"
    )]
    Handler(String),
    /// The description is too long.
    #[error("the description must be at most {MAX_DESCRIPTION} characters")]
    Description,
    /// Too many layers.
    #[error("there are {0} layers, and may be {MAX_LAYERS}: put some of them together")]
    Layers(usize),
    /// A layer is there twice.
    #[error("layer {0} is there twice")]
    LayerTwice(Digest),
    /// The memory is too little or too much.
    #[error("memory_mb is {memory_mb}, and must be from {MIN_MEMORY_MB} to {most}")]
    Memory {
        /// What was asked for.
        memory_mb: u32,
        /// The most that this host allows.
        most: u32,
    },
    /// `/tmp` cannot be of that size.
    #[error("ephemeral_storage_mb is {0}, and must be from {MIN_STORAGE_MB} to {MAX_STORAGE_MB}")]
    Storage(u32),
    /// `/tmp` is in memory, and there is too little of it.
    #[error(
        "ephemeral_storage_mb is {storage_mb}, and /tmp is in memory, of which it may take half: \
         memory_mb is {memory_mb}, and would have to be {} or more",
        storage_mb.saturating_mul(2)
    )]
    StorageInMemory {
        /// What was asked for.
        storage_mb: u32,
        /// The function's memory.
        memory_mb: u32,
    },
    /// The timeout is zero or too long.
    #[error("timeout_s is {0}, and must be from 1 to {MAX_TIMEOUT_S}")]
    Timeout(u32),
    /// A variable's name is not one, or is taken.
    #[error("the environment variable {0:?} cannot be set")]
    Variable(String),
    /// The variables are too long.
    #[error("the environment has {0} bytes, and may have {MAX_ENVIRONMENT}")]
    Environment(usize),
}

fn known_runtimes() -> String {
    RUNTIMES.map(|(name, _)| name).join(", ")
}

impl FunctionConfig {
    /// All keys of a description.
    pub const KEYS: [&str; 11] = [
        "name",
        "description",
        "runtime",
        "handler",
        "memory_mb",
        "timeout_s",
        "ephemeral_storage_mb",
        "cpu_template",
        "environment",
        "layers",
        "logging",
    ];

    /// Checks everything that serde does not.
    ///
    /// # Errors
    /// Says what is wrong first.
    pub fn validate(&self, max_memory_mib: u32) -> Result<(), InvalidFunction> {
        let needed = !self.is_provided()?;
        let handler = &self.handler;
        let printable = handler.chars().all(|c| c.is_ascii_graphic());
        if (handler.is_empty() && needed) || handler.len() > MAX_HANDLER || !printable {
            let handler = handler.chars().take(MAX_HANDLER).collect();
            return Err(InvalidFunction::Handler(handler));
        }
        if self.description.chars().count() > MAX_DESCRIPTION {
            return Err(InvalidFunction::Description);
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(InvalidFunction::Layers(self.layers.len()));
        }
        for (number, layer) in self.layers.iter().enumerate() {
            if self.layers[..number].contains(layer) {
                return Err(InvalidFunction::LayerTwice(*layer));
            }
        }
        if !(MIN_MEMORY_MB..=max_memory_mib).contains(&self.memory_mb) {
            let memory_mb = self.memory_mb;
            return Err(InvalidFunction::Memory {
                memory_mb,
                most: max_memory_mib,
            });
        }
        if let Some(storage_mb) = self.ephemeral_storage_mb {
            if !(MIN_STORAGE_MB..=MAX_STORAGE_MB).contains(&storage_mb) {
                return Err(InvalidFunction::Storage(storage_mb));
            }
            if storage_mb > self.memory_mb / 2 {
                return Err(InvalidFunction::StorageInMemory {
                    storage_mb,
                    memory_mb: self.memory_mb,
                });
            }
        }
        if !(1..=MAX_TIMEOUT_S).contains(&self.timeout_s) {
            return Err(InvalidFunction::Timeout(self.timeout_s));
        }
        if let Some(name) = self.environment.keys().find(|name| !allowed_variable(name)) {
            return Err(InvalidFunction::Variable(name.clone()));
        }
        if let Some((name, _)) = self
            .environment
            .iter()
            .find(|(_, value)| value.contains('\0'))
        {
            return Err(InvalidFunction::Variable(name.clone()));
        }
        let size = self
            .environment
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if size > MAX_ENVIRONMENT {
            return Err(InvalidFunction::Environment(size));
        }
        Ok(())
    }

    /// Name of the root file system that its runtime needs.
    ///
    /// # Errors
    /// When there is no such runtime.
    pub fn root_fs(&self) -> Result<&'static str, InvalidFunction> {
        RUNTIMES
            .iter()
            .find(|(name, _)| *name == self.runtime)
            .map(|(_, root_fs)| *root_fs)
            .ok_or_else(|| InvalidFunction::Runtime(self.runtime.clone()))
    }

    /// Whether it brings what is run: a `bootstrap`, or a container image's command.
    ///
    /// # Errors
    /// When there is no such runtime.
    pub fn is_provided(&self) -> Result<bool, InvalidFunction> {
        Ok(self.root_fs()? == PROVIDED)
    }

    /// Its ARN.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("{ARN_PREFIX}{}", self.name)
    }

    /// How long a request may run.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.timeout_s))
    }

    /// How much `/tmp` may hold, in MiB.
    #[must_use]
    pub fn ephemeral_storage_mb(&self) -> u32 {
        let half = self.memory_mb / 2;
        self.ephemeral_storage_mb
            .unwrap_or(half.min(DEFAULT_STORAGE_MB))
    }

    /// The shape of its machine.
    #[must_use]
    pub const fn machine(&self) -> Machine {
        Machine {
            memory_mib: self.memory_mb,
            vcpus: VCPUS,
            template: self.cpu_template,
        }
    }

    /// What guest-init is told.
    #[must_use]
    pub fn init(&self) -> Init {
        Init {
            function: self.name.to_string(),
            version: VERSION.to_owned(),
            handler: self.handler.clone(),
            memory_mib: self.memory_mb,
            region: REGION.to_owned(),
            execution_env: self.execution_env(),
            log_format: self.logging.format.into(),
            log_level: self.logging.level().map(str::to_owned),
            vsock: VsockAccess::Denied,
            environment: self.environment.clone().into_iter().collect(),
            wall_clock_ns: 0,
            ephemeral_storage_mib: self.ephemeral_storage_mb(),
        }
    }
}

impl FunctionConfig {
    /// `AWS_EXECUTION_ENV`: functions that bring their own runtime have none.
    fn execution_env(&self) -> Option<String> {
        let runtime = &self.runtime;
        (!runtime.starts_with("provided")).then(|| format!("AWS_Lambda_{runtime}"))
    }
}

fn allowed_variable(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins_well = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    begins_well
        && name.chars().all(word)
        && !RESERVED.contains(&name)
        && !name.starts_with(RESERVED_PREFIX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn config(name: &str) -> FunctionConfig {
        let json = serde_json::json!({
            "name": name, "runtime": "python3.11", "handler": "app.handler"
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn defaults_are_lambdas() {
        let config = config("f");
        assert_eq!((config.memory_mb, config.timeout_s), (128, 3));
        config.validate(10_240).unwrap();
    }

    #[test]
    fn tmp_has_lambdas_size_where_half_of_the_memory_is_as_much() {
        let mut config = config("f");
        for (memory_mb, storage_mb, expected) in [
            (128, None, Ok(64)),
            (1024, None, Ok(512)),
            (10_240, None, Ok(512)),
            (128, Some(64), Ok(64)),
            (2048, Some(1024), Ok(1024)),
            (128, Some(63), Err(InvalidFunction::Storage(63))),
            (10_240, Some(10_241), Err(InvalidFunction::Storage(10_241))),
            (
                1022,
                Some(512),
                Err(InvalidFunction::StorageInMemory {
                    storage_mb: 512,
                    memory_mb: 1022,
                }),
            ),
        ] {
            (config.memory_mb, config.ephemeral_storage_mb) = (memory_mb, storage_mb);
            let found = config.validate(10_240);
            assert_eq!(found.map(|()| config.ephemeral_storage_mb()), expected);
        }
    }

    #[test]
    fn code_that_brings_its_own_bootstrap_needs_no_handler() {
        let mut function = config("f");
        function.handler.clear();
        for (runtime, works) in [("python3.11", false), ("nodejs18.x", false)]
            .into_iter()
            .chain(["provided", "provided.al2", "provided.al2023"].map(|name| (name, true)))
        {
            function.runtime = runtime.to_owned();
            assert_eq!(function.validate(10_240).is_ok(), works, "{runtime}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        type Change = fn(&mut FunctionConfig);
        let cases: [Change; 12] = [
            |c| c.runtime = "cobol".to_owned(),
            |c| c.description = "x".repeat(257),
            |c| c.layers = (0..6_u8).map(|n| Digest::of(&[n])).collect(),
            |c| c.layers = vec![Digest::of(b"twice"); 2],
            |c| c.handler.clear(),
            |c| c.handler = "a b".to_owned(),
            |c| c.memory_mb = 1,
            |c| c.memory_mb = 10_241,
            |c| c.timeout_s = 0,
            |c| c.timeout_s = 901,
            |c| {
                drop(
                    c.environment
                        .insert("AWS_LAMBDA_RUNTIME_API".to_owned(), String::new()),
                )
            },
            |c| drop(c.environment.insert("BIG".to_owned(), "x".repeat(4096))),
        ];
        for (number, change) in cases.into_iter().enumerate() {
            let mut bad = config("f");
            change(&mut bad);
            assert!(bad.validate(10_240).is_err(), "case {number}");
        }
    }
}
