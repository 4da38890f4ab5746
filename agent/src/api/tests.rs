//! What a caller sees, without a microVM: every answer here is given before one
//! is needed.

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use snapback_proto::frame::MAX_BODY;
use snapback_vmm::snapshot::Digest;
use tower::ServiceExt as _;

use super::*;
use crate::config::Config;
use crate::exec::BuildFacts;
use crate::function::tests::config as function_config;
use crate::ids::new_snapshot_id;
use crate::store::{Function, Store};

struct Fixture {
    node: Arc<Node>,
    _state: tempfile::TempDir,
}

/// A node with one function whose snapshot does not exist.
fn fixture() -> Fixture {
    let state = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.paths.state_dir = state.path().to_owned();
    config.paths.assets = state.path().join("assets");
    config.paths.vmm = Some(std::env::current_exe().unwrap());
    config.cgroup.root = Some(state.path().join("no-cgroup"));
    config.timeouts.record_wait_ms = 0;
    // The program is no VMM.
    config.pools.blank = 0;
    let store = Store::open(&state.path().join("snapback.db")).unwrap();
    let function = Function {
        config: function_config("known"),
        code: Digest::of(b"code"),
        snapshot: new_snapshot_id().unwrap(),
        build: BuildFacts::default(),
        created_unix_ms: 0,
    };
    store.add_function(&function).unwrap();
    drop(store);
    Fixture {
        node: Node::start(config).unwrap(),
        _state: state,
    }
}

impl Fixture {
    async fn send(&self, request: Request<Body>) -> Response<Body> {
        router(Arc::clone(&self.node))
            .oneshot(request)
            .await
            .unwrap()
    }

    async fn get(&self, path: &str) -> Response<Body> {
        self.send(Request::get(path).body(Body::empty()).unwrap())
            .await
    }

    async fn invoke(&self, name: &str, headers: &[(&str, &str)], body: Body) -> Response<Body> {
        let path = format!("/2015-03-31/functions/{name}/invocations");
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body).unwrap()).await
    }
}

async fn told(response: Response<Body>) -> (StatusCode, String, serde_json::Value) {
    let status = response.status();
    let kind = response.headers().get("x-amzn-errortype");
    let kind = kind
        .map(|value| value.to_str().unwrap().to_owned())
        .unwrap_or_default();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (
        status,
        kind,
        serde_json::from_slice(&body).unwrap_or_default(),
    )
}

#[tokio::test]
async fn the_figures_are_openmetrics_text_and_count_what_did_not_run() {
    let fixture = fixture();
    fixture.invoke("known", &[], Body::from("{}")).await;
    let response = fixture.get("/metrics").await;
    assert_eq!(response.status(), StatusCode::OK);
    let kind = response.headers()["content-type"].to_str().unwrap();
    assert_eq!(kind, crate::telemetry::CONTENT_TYPE);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&body).unwrap();
    for line in [
        "snapback_requests_total{outcome=\"not_run\"} 1\n",
        "snapback_pager_threads 2\n",
        "snapback_environments{state=\"verifying\"} 0\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
}

#[tokio::test]
async fn an_unknown_function_is_lambdas_404() {
    let fixture = fixture();
    for name in ["unknown", "known:7", "..%2Fknown"] {
        let response = fixture.invoke(name, &[], Body::from("{}")).await;
        assert!(response.headers().contains_key("x-amzn-requestid"));
        let (status, kind, body) = told(response).await;
        assert_eq!(
            (status.as_u16(), kind.as_str()),
            (404, "ResourceNotFoundException")
        );
        assert_eq!(body["Type"], "User");
        assert!(
            body["Message"]
                .as_str()
                .unwrap()
                .starts_with("Function not found: arn:")
        );
    }
}

#[tokio::test]
async fn a_body_that_is_not_json_is_lambdas_400() {
    let fixture = fixture();
    let (status, kind, body) = told(fixture.invoke("known", &[], Body::from("{")).await).await;
    assert_eq!(
        (status.as_u16(), kind.as_str()),
        (400, "InvalidRequestContentException")
    );
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .starts_with("Could not parse request body")
    );
}

#[tokio::test]
async fn a_body_that_is_too_long_is_lambdas_413_announced_or_not() {
    let fixture = fixture();
    let too_long = || Body::from(vec![b' '; MAX_BODY + 1]);
    let announced = [("content-length", "6291457")];
    for headers in [&announced[..], &[]] {
        let (status, kind, _) = told(fixture.invoke("known", headers, too_long()).await).await;
        assert_eq!(
            (status.as_u16(), kind.as_str()),
            (413, "RequestTooLargeException")
        );
    }
    // Just fits, and is not JSON.
    let fits = Body::from(vec![b' '; MAX_BODY]);
    assert_eq!(told(fixture.invoke("known", &[], fits).await).await.0, 400);
}

#[tokio::test]
async fn a_dry_run_runs_nothing() {
    let fixture = fixture();
    let dry_run = [("x-amz-invocation-type", "DryRun")];
    let response = fixture.invoke("known", &dry_run, Body::empty()).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    let response = fixture.invoke("unknown", &dry_run, Body::empty()).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn wrong_headers_are_lambdas_400() {
    let fixture = fixture();
    for header in [
        ("x-amz-invocation-type", "Sometimes"),
        ("x-amz-log-type", "Head"),
        ("x-amz-client-context", "not base64"),
        ("x-amz-client-context", "bm90IGpzb24="),
    ] {
        let (status, kind, _) =
            told(fixture.invoke("known", &[header], Body::from("{}")).await).await;
        assert_eq!(
            (status.as_u16(), kind.as_str()),
            (400, "InvalidParameterValueException")
        );
    }
}

#[tokio::test]
async fn a_snapshot_that_is_not_there_is_lambdas_500() {
    let fixture = fixture();
    let (status, kind, body) = told(fixture.invoke("known", &[], Body::from("{}")).await).await;
    assert_eq!((status.as_u16(), kind.as_str()), (500, "ServiceException"));
    assert_eq!(body["Type"], "Service");
}

#[tokio::test]
async fn functions_are_listed_described_and_deleted() {
    let fixture = fixture();
    let (status, _, body) = told(fixture.get("/v1/functions").await).await;
    assert_eq!(
        (status.as_u16(), &body["functions"][0]["name"]),
        (200, &"known".into())
    );
    let (_, _, body) = told(fixture.get("/v1/functions/known").await).await;
    let info: FunctionInfo = serde_json::from_value(body).unwrap();
    assert_eq!(info.config, function_config("known"));
    for expected in [204, 404] {
        let delete = Request::delete("/v1/functions/known")
            .body(Body::empty())
            .unwrap();
        assert_eq!(fixture.send(delete).await.status().as_u16(), expected);
    }
    assert_eq!(
        fixture.get("/v1/functions/known").await.status(),
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn descriptions_are_strict() {
    let fixture = fixture();
    let code = Digest::of(b"never uploaded").to_string();
    let good = serde_json::json!({
        "name": "new", "runtime": "python3.11", "handler": "app.handler", "code": code,
    });
    let with = |key: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed
    };
    let cases = [
        (good.clone(), 400, "upload the code first"),
        (with("name", "a b".into()), 400, "is not a function name"),
        (with("name", "known".into()), 409, "exists already"),
        (
            with("runtime", "cobol".into()),
            400,
            "there is: nodejs18.x, provided, provided.al2, provided.al2023, python3.11",
        ),
        (with("memory_mb", 1.into()), 400, "memory_mb is 1"),
        (
            with("ephemeral_storage_mb", 65.into()),
            400,
            "memory_mb is 128, and would have to be 130",
        ),
        (
            with("memory_size", 256.into()),
            400,
            "the key `memory_size` is not known: is `memory_mb` meant?",
        ),
        (with("code", "x".into()), 400, "hash"),
    ];
    for (body, expected, words) in cases {
        let request = Request::post("/v1/functions")
            .body(Body::from(body.to_string()))
            .unwrap();
        let (status, _, told) = told(fixture.send(request).await).await;
        let message = told["message"].as_str().unwrap_or_default();
        assert_eq!(status.as_u16(), expected, "{message}");
        assert!(message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn an_archive_that_is_none_is_refused() {
    let fixture = fixture();
    let request = Request::post("/v1/code")
        .body(Body::from("no tar"))
        .unwrap();
    let (status, kind, _) = told(fixture.send(request).await).await;
    assert_eq!(
        (status.as_u16(), kind.as_str()),
        (400, "InvalidParameterValueException")
    );
}

#[tokio::test]
async fn a_node_that_shuts_down_is_alive_and_not_ready() {
    let fixture = fixture();
    assert_eq!(fixture.get("/readyz").await.status(), StatusCode::OK);
    fixture.node.shut_down().await;
    assert_eq!(fixture.get("/healthz").await.status(), StatusCode::OK);
    assert_eq!(
        fixture.get("/readyz").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    let (status, kind, _) = told(fixture.invoke("known", &[], Body::from("{}")).await).await;
    assert_eq!((status.as_u16(), kind.as_str()), (503, "ServiceException"));
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_say_so() {
    let fixture = fixture();
    assert_eq!(
        fixture.get("/nothing").await.status(),
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        fixture
            .get("/v1/requests/00000000-0000-4000-8000-000000000000")
            .await
            .status(),
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        fixture.get("/v1/code").await.status(),
        StatusCode::METHOD_NOT_ALLOWED
    );
}

/// `docs/openapi.json` is a copy; `SNAPBACK_BLESS=1` writes it anew.
#[test]
fn the_published_description_is_the_served_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let mut text = document().to_pretty_json().unwrap();
    text.push('\n');
    if std::env::var_os("SNAPBACK_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap();
    assert!(published == text, "run the test with SNAPBACK_BLESS=1");
}
