"""A runtime of its own inside the Python one: answers in pieces, as the event says.

The AWS runtime client for Python does not stream, so this speaks the Runtime API itself.
"""

import base64
import http.client
import json
import os
import time

API = os.environ["AWS_LAMBDA_RUNTIME_API"]
BASE = "/2018-06-01/runtime/invocation"


def stream(connection, request, event):
    trailers = event.get("trailers", {})
    connection.putrequest("POST", f"{BASE}/{request}/response")
    connection.putheader("Content-Type", event.get("type", "text/plain"))
    connection.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
    connection.putheader("Transfer-Encoding", "chunked")
    for name in trailers:
        connection.putheader("Trailer", name)
    connection.endheaders()
    for number in range(event["pieces"]):
        piece = f"{number}:".encode().ljust(event.get("size", 8), b".")
        connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        time.sleep(event.get("pause", 0))
    if event.get("break"):
        os._exit(9)
    lines = "".join(f"{name}: {value}\r\n" for name, value in trailers.items())
    connection.send(f"0\r\n{lines}\r\n".encode())
    connection.getresponse().read()


def serve():
    connection = http.client.HTTPConnection(API)
    while True:
        connection.request("GET", f"{BASE}/next")
        answer = connection.getresponse()
        request = answer.getheader("Lambda-Runtime-Aws-Request-Id")
        event = json.loads(answer.read())
        if "error" in event:
            event["trailers"] = {
                "Lambda-Runtime-Function-Error-Type": event["error"]["errorType"],
                "Lambda-Runtime-Function-Error-Body":
                    base64.b64encode(json.dumps(event["error"]).encode()).decode(),
            }
        if "pieces" in event:
            stream(connection, request, event)
        else:
            body = json.dumps({"whole": event})
            connection.request("POST", f"{BASE}/{request}/response", body)
            connection.getresponse().read()


serve()
