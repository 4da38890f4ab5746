//! What a function's log lines look like: Lambda's `LoggingConfig`, in `snake_case`.

use serde::{Deserialize, Serialize};
use snapback_proto::guest::LogFormat;

/// The format, and the least level that a function's own lines have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoggingConfig {
    /// Text or JSON, for the function's lines and the platform's.
    #[serde(default)]
    pub format: Format,
    /// Which lines a function that logs JSON leaves out. `INFO` when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_log_level: Option<Level>,
}

/// Lambda's `LogFormat`.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
    clap::ValueEnum,
)]
pub enum Format {
    /// Lines of text.
    #[default]
    Text,
    /// One JSON object a line.
    #[serde(rename = "JSON")]
    Json,
}

/// Lambda's `ApplicationLogLevel`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names are all that there is to say")]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Text => Self::Text,
            Format::Json => Self::Json,
        }
    }
}

impl LoggingConfig {
    /// `AWS_LAMBDA_LOG_LEVEL`: only for JSON, as on Lambda.
    #[must_use]
    pub fn level(&self) -> Option<&'static str> {
        if self.format == Format::Text {
            return None;
        }
        Some(match self.application_log_level.unwrap_or(Level::Info) {
            Level::Trace => "TRACE",
            Level::Debug => "DEBUG",
            Level::Info => "INFO",
            Level::Warn => "WARN",
            Level::Error => "ERROR",
            Level::Fatal => "FATAL",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_lambdas() {
        let parse = |text: &str| serde_json::from_str::<LoggingConfig>(text).unwrap();
        assert_eq!(parse("{}"), LoggingConfig::default());
        assert_eq!(parse("{}").level(), None);
        let json = parse("{\"format\": \"JSON\", \"application_log_level\": \"DEBUG\"}");
        assert_eq!(json.level(), Some("DEBUG"));
        assert_eq!(parse("{\"format\": \"JSON\"}").level(), Some("INFO"));
        let text = parse("{\"application_log_level\": \"DEBUG\"}");
        assert_eq!(text.level(), None);
    }
}
