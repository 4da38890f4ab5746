"""Brings a runtime client of its own that cannot be rehearsed, as one of another version."""

import awslambdaric.bootstrap as client

CALLS = []
handle_event_request = client.handle_event_request


def other_version(runtime, handler, request, *rest):
    if request == "rehearsal":
        raise TypeError("this client cannot be rehearsed")
    return handle_event_request(runtime, handler, request, *rest)


client.handle_event_request = other_version


def handler(event, context):
    CALLS.append(context.aws_request_id)
    return len(CALLS)
