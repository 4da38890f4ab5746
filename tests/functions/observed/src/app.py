"""A function with an external extension from a layer, and an internal one."""

import http.client
import json
import os
import threading
import time

BASE = "/2020-01-01/extension"


def register():
    connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])

    def ask(method, path, body=None, **headers):
        connection.request(method, BASE + path, body, headers)
        answer = connection.getresponse()
        return answer.headers, answer.read()

    events = json.dumps({"events": ["INVOKE"]})
    headers, _ = ask("POST", "/register", events, **{"Lambda-Extension-Name": "inner"})
    own = {"Lambda-Extension-Identifier": headers["Lambda-Extension-Identifier"]}

    def serve():
        while True:
            _, event = ask("GET", "/event/next", **own)
            print("INNER", event.decode(), flush=True)

    threading.Thread(target=serve, daemon=True).start()


register()
print("initialised", flush=True)


def handler(event, context):
    print(f"handling {event['word']}", flush=True)
    if "wish" in event:
        open(f"/tmp/{event['wish']}", "w").close()
        time.sleep(30)
    return event["word"]
