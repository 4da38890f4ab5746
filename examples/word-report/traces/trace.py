"""What a trace is."""

import os
from dataclasses import dataclass
from typing import Callable

TAG = os.environ.get("TRACE_TAG", "snapback-trace")
"""What every trace is called."""


@dataclass(frozen=True)
class Trace:
    """One place: whether a trace is there, and how one is left."""

    name: str
    find: Callable[[], bool]
    leave: Callable[[], None]


def changed(name, read, leave):
    """A trace that is a value other than the one from when the function was initialised."""
    initial = read()
    return Trace(name, lambda: read() != initial, leave)
