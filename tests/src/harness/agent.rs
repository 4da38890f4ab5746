//! A running agent.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::cli::{self, Run};
use super::http::{self, Response};
use super::place::Place;
use super::processes::{self, Process};
use super::wait_for;

/// Ends an agent whose test program is gone, in whatever way: its standard input ends then.
const GUARDIAN: &str = r#"
read -r _
kill -TERM "$1"
tries=0
while kill -0 "$1" 2>/dev/null && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -KILL "$1" 2>/dev/null
rmdir "$2"/* "$2" 2>/dev/null
rm -rf -- "$3"
"#;

/// A running agent; killed when it is dropped.
pub struct Agent {
    place: Option<Place>,
    child: Child,
    guardian: Child,
}

/// How many environments there are, by what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Environments {
    pub starting: u64,
    pub idle: u64,
    pub busy: u64,
    pub resetting: u64,
    pub verifying: u64,
}

impl Agent {
    /// Starts one and waits until it serves.
    pub fn start(place: Place, config: &str) -> Self {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(place.folder().join("log"))
            .unwrap();
        let child = place
            .agent_command(config)
            .arg("--socket")
            .arg(place.socket())
            .arg("--cgroup-root")
            .arg(place.cgroup())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let guardian = Command::new("/bin/sh")
            .args(["-c", GUARDIAN, "guardian", &child.id().to_string()])
            .args([place.cgroup(), place.folder()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut agent = Self {
            place: Some(place),
            child,
            guardian,
        };
        wait_for("the agent", || {
            let ended = agent.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", agent.place().log());
            let ready = http::request(&agent.place().socket(), "GET", "/readyz", &[], b"");
            ready.is_ok_and(|ready| ready.status == 200).then_some(())
        });
        agent
    }

    pub fn place(&self) -> &Place {
        self.place.as_ref().unwrap()
    }

    /// Asks for its end, as an operator does, and waits for it.
    pub fn terminate(self) -> Place {
        self.signal(Signal::TERM);
        self.wait_for_end()
    }

    /// Waits for the end that was asked for.
    pub fn wait_for_end(mut self) -> Place {
        let status = self.wait();
        assert!(status.success(), "{status:?}: {}", self.place().log());
        self.place.take().unwrap()
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) -> Place {
        self.signal(Signal::KILL);
        self.wait();
        self.place.take().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the agent's end", || child.try_wait().unwrap())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processes of its microVMs.
    pub fn machines(&self) -> Vec<Process> {
        processes::machines_in(self.place().cgroup())
    }

    pub fn environments(&self) -> Environments {
        let readiness = self.get("/readyz").json();
        let count = |state: &str| readiness["environments"][state].as_u64().unwrap();
        Environments {
            starting: count("starting"),
            idle: count("idle"),
            busy: count("busy"),
            resetting: count("resetting"),
            verifying: count("verifying"),
        }
    }

    /// A figure of `/metrics`, by its name and labels.
    pub fn metric(&self, series: &str) -> u64 {
        let text = String::from_utf8(self.get("/metrics").body).unwrap();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(series));
        let value = lines.find_map(|rest| rest.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("{series} is not in {text}"));
        value.parse().unwrap()
    }

    /// How many microVMs were destroyed for a reason.
    pub fn poisoned(&self, reason: &str) -> u64 {
        self.metric(&format!("snapback_poisoned_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until so many microVMs were destroyed for a reason.
    pub fn wait_for_poisoned(&self, reason: &str, count: u64) {
        wait_for(reason, || (self.poisoned(reason) == count).then_some(()));
    }

    /// Waits until so many requests run.
    pub fn wait_for_busy(&self, count: u64) {
        wait_for("a running request", || {
            (self.environments().busy == count).then_some(())
        });
    }

    pub fn http(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        http::request(&self.place().socket(), method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub fn get(&self, path: &str) -> Response {
        self.http("GET", path, &[], b"")
    }

    /// Lambda's Invoke for a tenant.
    pub fn invoke_for(&self, tenant: &str, name: &str, event: &Value) -> Response {
        let headers = [("x-amz-tenant-id", tenant)];
        let event = event.to_string();
        self.http("POST", &invocations(name), &headers, event.as_bytes())
    }

    /// Lambda's Invoke; an error when the connection breaks.
    pub fn try_invoke(&self, name: &str, payload: &[u8]) -> io::Result<Response> {
        http::request(
            &self.place().socket(),
            "POST",
            &invocations(name),
            &[],
            payload,
        )
    }

    /// Lambda's Invoke.
    pub fn invoke(&self, name: &str, event: &Value) -> Response {
        self.try_invoke(name, event.to_string().as_bytes()).unwrap()
    }

    /// Invokes, checks that the function answered, and returns its answer.
    pub fn call(&self, name: &str, event: &Value) -> Value {
        self.call_recorded(name, event).0
    }

    /// As [`Self::call`], with the record of what the request cost.
    pub fn call_recorded(&self, name: &str, event: &Value) -> (Value, Value) {
        let response = self.invoke(name, event);
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(response.header("x-amz-function-error"), "", "{response:?}");
        (response.json(), self.record(&response))
    }

    /// What a request cost; waits for its reset.
    pub fn record(&self, response: &Response) -> Value {
        let record = self.get(&format!("/v1/requests/{}", response.request_id()));
        assert_eq!(record.status, 200, "{record:?}");
        let record = record.json();
        assert_eq!(record["finished"], true, "{record}");
        record
    }

    /// A function, as the agent tells it.
    pub fn function(&self, name: &str) -> Value {
        let response = self.get(&format!("/v1/functions/{name}"));
        assert_eq!(response.status, 200, "{response:?}");
        response.json()
    }

    /// The names of all functions.
    pub fn function_names(&self) -> Vec<String> {
        let list = self.get("/v1/functions").json();
        let functions = list["functions"].as_array().unwrap();
        functions
            .iter()
            .map(|function| function["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Uploads a folder as a tar archive; the result is the code's hash.
    pub fn upload(&self, folder: &Path) -> Value {
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_dir_all(".", folder).unwrap();
        let archive = archive.into_inner().unwrap();
        let uploaded = self.http("POST", "/v1/code", &[], &archive);
        assert_eq!(uploaded.status, 201, "{uploaded:?}");
        uploaded.json()["code"].clone()
    }

    /// Creates a function over HTTP.
    pub fn create_over_http(&self, name: &str, code: &Value) -> Response {
        let description = json!({
            "name": name, "runtime": "python3.11", "handler": "app.handler", "code": code,
        });
        self.http(
            "POST",
            "/v1/functions",
            &[],
            description.to_string().as_bytes(),
        )
    }

    /// A command of the command line.
    pub fn cli(&self, arguments: &[&str]) -> Run {
        cli::client(&self.place().socket(), arguments, b"")
    }

    /// `snapback function create`.
    pub fn create(&self, name: &str, code: &Path, more: &[&str]) -> Run {
        let code = code.to_str().unwrap();
        let mut arguments = vec!["function", "create", name, "--code", code];
        arguments.extend(["--runtime", "python3.11", "--handler", "app.handler"]);
        arguments.extend(more);
        self.cli(&arguments)
    }

    /// `snapback invoke`, with the event on its standard input.
    pub fn cli_invoke(&self, name: &str, event: &[u8]) -> Run {
        cli::client(
            &self.place().socket(),
            &["invoke", name, "--payload", "-"],
            event,
        )
    }
}

/// The path of Lambda's Invoke.
pub fn invocations(name: &str) -> String {
    format!("/2015-03-31/functions/{name}/invocations")
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(place) = &self.place
            && std::thread::panicking()
        {
            eprintln!("the agent's log:\n{}", place.log());
        }
        let _ = self.guardian.kill();
        let _ = self.guardian.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
