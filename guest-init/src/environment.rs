//! The environment variables of the function, as Lambda sets them.

use std::net::SocketAddr;

use snapback_proto::guest::{Init, LogFormat};

/// What a function may not set: Lambda's reserved names.
const RESERVED: [&str; 21] = [
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_FORMAT",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_LEVEL",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
];

/// The whole environment of the runtime; nothing is inherited.
///
/// No credentials on purpose: what is set here is in the snapshot, and
/// `AWS_ACCESS_KEY_ID` would win over the credentials endpoint.
#[must_use]
pub fn variables(init: &Init, task_root: &str, api: SocketAddr) -> Vec<(String, String)> {
    let mut all = Vec::with_capacity(20 + init.environment.len());
    let mut set = |name: &str, value: &str| all.push((name.to_owned(), value.to_owned()));

    // A function may set these otherwise: of two, the later wins.
    set("LANG", "en_US.UTF-8");
    set("TZ", ":UTC");
    set(
        "PATH",
        "/var/lang/bin:/usr/local/bin:/usr/bin:/bin:/opt/bin",
    );
    set("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR");
    set(
        "LD_LIBRARY_PATH",
        "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
    );
    for (name, value) in &init.environment {
        if may_set(name) && !value.contains('\0') {
            set(name, value);
        }
    }

    set("AWS_LAMBDA_RUNTIME_API", &api.to_string());
    set("AWS_LAMBDA_FUNCTION_NAME", &init.function);
    set("AWS_LAMBDA_FUNCTION_VERSION", &init.version);
    set(
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        &init.memory_mib.to_string(),
    );
    // Every function here is a snapshot: its runtime runs the hooks of one.
    set("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start");
    set("AWS_REGION", &init.region);
    set("AWS_DEFAULT_REGION", &init.region);
    if let Some(name) = &init.execution_env {
        set("AWS_EXECUTION_ENV", name);
    }
    match init.log_format {
        LogFormat::Text => set("AWS_LAMBDA_LOG_FORMAT", "Text"),
        LogFormat::Json => set("AWS_LAMBDA_LOG_FORMAT", "JSON"),
    }
    if let Some(level) = &init.log_level {
        set("AWS_LAMBDA_LOG_LEVEL", level);
    }
    set(
        "AWS_LAMBDA_LOG_GROUP_NAME",
        &format!("/aws/lambda/{}", init.function),
    );
    set("AWS_LAMBDA_LOG_STREAM_NAME", &log_stream(init));
    set("_HANDLER", &init.handler);
    set("LAMBDA_TASK_ROOT", task_root);
    set("LAMBDA_RUNTIME_DIR", "/var/runtime");
    all
}

/// The environment of an external extension: the runtime's, without what is the
/// runtime's alone.
#[must_use]
pub fn for_extension(mut all: Vec<(String, String)>) -> Vec<(String, String)> {
    const RUNTIME_ONLY: [&str; 7] = [
        "_HANDLER",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_XRAY_CONTEXT_MISSING",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
    ];
    all.retain(|(name, _)| !RUNTIME_ONLY.contains(&name.as_str()));
    all
}

/// Whether a function's own variable reaches it.
#[must_use]
pub fn may_set(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !RESERVED.contains(&name)
}

/// `2026/01/31/[$LATEST]` and 32 hexadecimal digits.
fn log_stream(init: &Init) -> String {
    let (year, month, day) = date(init.wall_clock_ns / 1_000_000_000 / 86_400);
    let (version, unique) = (&init.version, init.wall_clock_ns);
    format!("{year:04}/{month:02}/{day:02}/[{version}]{unique:032x}")
}

/// The civil date of a day since 1970-01-01: year, month, day.
#[must_use]
pub fn date(day: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, in eras of 400 years: leap days come last then.
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use snapback_proto::guest::VsockAccess;

    use super::*;

    fn variables_of(own: &[(&str, &str)]) -> HashMap<String, String> {
        let init = Init {
            region: "local".to_owned(),
            execution_env: Some("AWS_Lambda_python3.11".to_owned()),
            log_format: LogFormat::Json,
            log_level: Some("DEBUG".to_owned()),
            vsock: VsockAccess::Denied,
            function: "report".to_owned(),
            version: "$LATEST".to_owned(),
            handler: "app.handler".to_owned(),
            memory_mib: 256,
            environment: own
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            wall_clock_ns: 951_782_400_000_000_000, // 2000-02-29
            ephemeral_storage_mib: 64,
        };
        let api = SocketAddr::from(([127, 0, 0, 1], 9001));
        variables(&init, "/var/task", api).into_iter().collect()
    }

    #[test]
    fn the_variables_are_lambdas() {
        let all = variables_of(&[("STAGE", "test"), ("PATH", "/mine")]);
        assert_eq!(all["AWS_LAMBDA_RUNTIME_API"], "127.0.0.1:9001");
        assert_eq!(all["_HANDLER"], "app.handler");
        assert_eq!(all["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"], "256");
        assert_eq!(all["AWS_LAMBDA_LOG_GROUP_NAME"], "/aws/lambda/report");
        assert!(all["AWS_LAMBDA_LOG_STREAM_NAME"].starts_with("2000/02/29/[$LATEST]0000"));
        assert_eq!(all["TZ"], ":UTC");
        assert_eq!(all["AWS_REGION"], "local");
        assert_eq!(all["AWS_DEFAULT_REGION"], "local");
        assert_eq!(all["AWS_EXECUTION_ENV"], "AWS_Lambda_python3.11");
        assert_eq!(all["AWS_LAMBDA_INITIALIZATION_TYPE"], "snap-start");
        assert_eq!(all["AWS_LAMBDA_LOG_FORMAT"], "JSON");
        assert_eq!(all["AWS_LAMBDA_LOG_LEVEL"], "DEBUG");
        assert_eq!(all["STAGE"], "test");
        assert_eq!(all["PATH"], "/mine");
        assert!(!all.contains_key("AWS_ACCESS_KEY_ID"));
    }

    #[test]
    fn a_function_cannot_set_what_is_reserved_or_impossible() {
        let before = variables_of(&[]);
        let own: Vec<_> = RESERVED.iter().map(|name| (*name, "mine")).collect();
        assert_eq!(variables_of(&own), before);
        assert_eq!(
            variables_of(&[("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "\0")]),
            before
        );
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_513), (2026, 3, 1));
        assert_eq!(date(47_541), (2100, 3, 1));
    }
}
