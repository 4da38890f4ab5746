"""A word-frequency and readability report, by a function that cannot behave.

Event:  {"title": "...", "text": "..."}
Answer: {"title": "...", "report": {...}, "traces_found": [names],
         "traces_left": [names], "traces_refused": {name: errno's name}}

First it looks for traces of an earlier request, then it does its work, and in the
end it leaves a trace in every place that it can reach. On a platform that reuses a
process for the next request, the next request finds them; where every request runs
in a fresh environment, `traces_found` is always empty.
"""

import report
import traces

_requests_served = 0


def _leave_global():
    global _requests_served
    _requests_served += 1


# The plainest trace of all lives here: a global of the handler's own module.
_TRACES = (
    traces.Trace("global", lambda: _requests_served > 0, _leave_global),
    *traces.ALL,
)


def handler(event, context):
    """Answers one request."""
    del context
    found = traces.find(_TRACES)
    title, text = (_string(event, key) for key in ("title", "text"))
    made = report.make(text)
    left, refused = traces.leave(_TRACES, found)
    return {
        "title": title,
        "report": made,
        "traces_found": found,
        "traces_left": left,
        "traces_refused": refused,
    }


def _string(event, key):
    value = event.get(key) if isinstance(event, dict) else None
    if not isinstance(value, str):
        raise ValueError(f'the event must be an object in which "{key}" is a string')
    return value
