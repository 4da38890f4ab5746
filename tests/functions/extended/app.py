"""A function with an internal extension, which works on after the answer."""

import http.client
import json
import os
import threading
import time

API = os.environ["AWS_LAMBDA_RUNTIME_API"]
BASE = "/2020-01-01/extension"


def ask(connection, method, path, body, **headers):
    connection.request(method, BASE + path, body, headers)
    answer = connection.getresponse()
    return answer, answer.read()


def serve(connection, identifier):
    while True:
        _, event = ask(connection, "GET", "/event/next", None,
                       **{"Lambda-Extension-Identifier": identifier})
        event = json.loads(event)
        # The handler says by then what it wants.
        time.sleep(0.5)
        time.sleep(60 if os.path.exists("/tmp/stall") else 1)
        print("the extension is done with", event["requestId"], flush=True)


def register():
    connection = http.client.HTTPConnection(API)
    answer, _ = ask(connection, "POST", "/register", json.dumps({"events": ["INVOKE"]}),
                    **{"Lambda-Extension-Name": "inner"})
    identifier = answer.getheader("Lambda-Extension-Identifier")
    threading.Thread(target=serve, args=(connection, identifier), daemon=True).start()


register()


def handler(event, context):
    if event.get("stall"):
        open("/tmp/stall", "w").close()
    return "answered"
