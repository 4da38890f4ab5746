"""Invokes functions with boto3, which knows nothing of us but the endpoint in its environment.

Prints a line of JSON for each case: its name, and the traceback if it failed.
"""

import base64
import json
import pathlib
import sys
import threading
import time
import traceback

import boto3
from botocore.config import Config

EXAMPLES = pathlib.Path(sys.argv[1])
LARGEST = 6 * 1024 * 1024
ONCE = Config(retries={"total_max_attempts": 1}, read_timeout=300)

CASES = []


def case(function):
    CASES.append(function)
    return function


def client():
    return boto3.client("lambda", config=ONCE)


def invoke(name, event, **more):
    payload = event if isinstance(event, bytes) else json.dumps(event).encode()
    return LAMBDA.invoke(FunctionName=name, Payload=payload, **more)


def answer(name, event, **more):
    response = invoke(name, event, **more)
    body = response["Payload"].read()
    assert response["StatusCode"] == 200, response
    assert "FunctionError" not in response, body
    return json.loads(body)


def refusal(exception, name, event, **more):
    try:
        invoke(name, event, **more)
    except exception as error:
        return error.response
    raise AssertionError(f"{name} was invoked")


@case
def every_example_answers_through_the_sdk():
    for name in ["thumbnailer", "pagerank", "compute", "node-report", "rust-words"]:
        read = lambda file: json.loads((EXAMPLES / name / file).read_text())
        response = invoke(name, read("event.json"), InvocationType="RequestResponse")
        assert response["ExecutedVersion"] == "$LATEST", response
        found = json.loads(response["Payload"].read())
        assert found == read("expected.json"), (name, found)
    assert answer("rust-container", {"text": "a b"})["words"] == 2


@case
def a_function_error_is_told_as_lambda_tells_it():
    for name, event, kind, words in [
        ("tour", {"do": "fail"}, "ValueError", "this handler fails"),
        ("node-tour", {"do": "fail"}, "TypeError", "this handler fails"),
        ("node-tour", {"do": "refuse"}, "Refused", "it was refused"),
        ("rust-words", {"text": ""}, None, "the text is empty"),
        ("rust-words", {"no": "text"}, None, "missing field `text`"),
    ]:
        response = invoke(name, event)
        assert response["StatusCode"] == 200, response
        assert response["FunctionError"] == "Unhandled", response
        error = json.loads(response["Payload"].read())
        assert words in error["errorMessage"], (name, error)
        assert kind in (None, error["errorType"]), (name, error)
        assert error["errorType"], (name, error)


@case
def an_event_is_accepted_and_runs():
    accepted = invoke("tour", {"do": "nap", "seconds": 0}, InvocationType="Event")
    assert accepted["StatusCode"] == 202, accepted
    assert accepted["Payload"].read() == b""
    record = wait_for_record(accepted["ResponseMetadata"]["RequestId"])
    assert record["status"] == "success" and record["function"] == "tour", record


def wait_for_record(request):
    import urllib.error
    import urllib.request

    url = f"{LAMBDA.meta.endpoint_url}/v1/requests/{request}"
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=60) as found:
                return json.load(found)
        except urllib.error.HTTPError as error:
            assert error.code == 404, error
            time.sleep(0.1)
    raise AssertionError(f"{request} did not end")


@case
def a_dry_run_runs_nothing():
    response = invoke("tour", {"do": "fail"}, InvocationType="DryRun")
    assert response["StatusCode"] == 204, response
    assert "FunctionError" not in response, response


@case
def the_log_tail_comes_when_it_is_asked_for():
    response = invoke("tour", {"do": "chat", "lines": 10}, LogType="Tail")
    tail = base64.b64decode(response["LogResult"])
    assert b"the last word\n" in tail and len(tail) == 4096, tail
    response = invoke("node-report", {"text": "three words here"}, LogType="Tail")
    assert b"3 words" in base64.b64decode(response["LogResult"]), response
    assert "LogResult" not in invoke("tour", {"do": "chat", "lines": 1})


@case
def a_busy_node_throttles():
    """Two requests may run at once; for a third there is no place."""
    naps = [threading.Thread(target=nap) for _ in range(2)]
    for one in naps:
        one.start()
    try:
        wait_until_busy(2)
        busy = LAMBDA.exceptions.TooManyRequestsException
        response = refusal(busy, "tour", {"do": "nap", "seconds": 0})
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 429, response
        assert response["Reason"] == "ConcurrentInvocationLimitExceeded", response
    finally:
        for one in naps:
            one.join()
    assert answer("tour", {"do": "nap", "seconds": 0})["napped"] == 0


def nap():
    response = client().invoke(FunctionName="tour", Payload=b'{"do": "nap", "seconds": 5}')
    assert json.loads(response["Payload"].read())["napped"] == 5


def wait_until_busy(count):
    import urllib.request

    for _ in range(600):
        with urllib.request.urlopen(f"{LAMBDA.meta.endpoint_url}/readyz", timeout=60) as found:
            if json.load(found)["environments"]["busy"] >= count:
                return
        time.sleep(0.05)
    raise AssertionError("nothing runs")


@case
def tenant_and_client_context_reach_the_function():
    context = {"client": {"app_title": "tests"}, "custom": {"key": "value"}, "env": {}}
    encoded = base64.b64encode(json.dumps(context).encode()).decode()
    facts = answer("tour", {"do": "facts"}, TenantId="tenant-7", ClientContext=encoded)
    assert facts["context"]["tenant_id"] == "tenant-7", facts["context"]
    assert facts["context"]["custom"] == {"key": "value"}, facts["context"]
    # Nothing of it is there for the next one.
    facts = answer("tour", {"do": "facts"})
    assert facts["context"]["tenant_id"] is None, facts["context"]
    assert facts["context"]["custom"] is None, facts["context"]
    facts = answer("node-tour", {"do": "facts"}, TenantId="tenant-8")
    assert facts["tenantId"] == "tenant-8", facts


@case
def payloads_of_every_size_come_back_byte_for_byte():
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
    state, block = 0x9E3779B97F4A7C15, bytearray()
    for _ in range(4099):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        block.append(letters[state >> 58])
    # A prime length: no two pages are alike.
    text = bytes(block) * (LARGEST // len(block) + 1)
    sizes = [2, 3, 4095, 4096, 4097, 65_536, 1_048_576, LARGEST]
    for name, sizes in [("tour", sizes), ("node-tour", [2, 4097, LARGEST])]:
        response = invoke(name, b"7")
        assert response["Payload"].read() == b"7", name
        for size in sizes:
            payload = b'"' + text[: size - 2] + b'"'
            body = invoke(name, payload)["Payload"].read()
            assert body == payload, (name, size, len(body), body[:100])


@case
def an_unknown_function_and_a_payload_too_large_are_the_sdks_own_exceptions():
    exceptions = LAMBDA.exceptions
    missing = refusal(exceptions.ResourceNotFoundException, "nobody", {})
    assert "Function not found" in missing["Error"]["Message"], missing
    large = b'"' + b"x" * LARGEST + b'"'
    refusal(exceptions.RequestTooLargeException, "tour", large)
    refusal(exceptions.InvalidRequestContentException, "tour", b"{")


@case
def nodejs_handlers_of_every_style_work():
    assert answer("node-tour", {"do": "echo", "n": [1, None, "ž"]})["n"] == [1, None, "ž"]
    assert answer("node-tour", {"do": "callback"}) == "called back"
    facts = answer("node-tour", {"do": "facts"})
    assert facts["functionName"] == "node-tour" and facts["memory"] == "256", facts
    assert 0 < facts["remaining"] <= 300_000 and facts["version"].startswith("v18."), facts
    assert facts["task"] == "/var/task", facts


@case
def an_answer_in_pieces_arrives_while_it_is_produced():
    response = LAMBDA.invoke_with_response_stream(
        FunctionName="node-stream", Payload=json.dumps({"pieces": 4, "pause": 1000}).encode()
    )
    assert response["StatusCode"] == 200, response
    arrived, whole, complete = [], b"", None
    for event in response["EventStream"]:
        if "PayloadChunk" in event:
            arrived.append(time.monotonic())
            whole += event["PayloadChunk"]["Payload"]
        elif "InvokeComplete" in event:
            complete = event["InvokeComplete"]
    assert whole == b"piece 0\npiece 1\npiece 2\npiece 3\n", whole
    assert complete is not None and "ErrorCode" not in complete, complete
    # Three pauses lie between the first piece and the last: they came one by one.
    assert len(arrived) >= 2 and arrived[-1] - arrived[0] > 1, arrived


LAMBDA = client()
for function in CASES:
    failure = None
    try:
        function()
    except Exception:
        failure = traceback.format_exc()
    print(json.dumps({"case": function.__name__, "failure": failure}), flush=True)
