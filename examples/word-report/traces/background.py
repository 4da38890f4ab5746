"""Traces that go on running after the answer."""

import os
import subprocess
import threading
import time
from pathlib import Path

from traces.trace import TAG, Trace

_PATIENCE_S = 2
_ticks = 0


def _tick():
    global _ticks
    while True:
        _ticks += 1
        time.sleep(0.01)


def _find_thread():
    return any(thread.name == TAG for thread in threading.enumerate())


def _leave_thread():
    threading.Thread(target=_tick, name=TAG, daemon=True).start()


def _leave_child():
    # Out of this process's session, and never waited for.
    subprocess.Popen(
        ["/bin/sh", "-c", "while :; do sleep 3600; done", TAG],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # For a moment a process that was just started has no command line to be found by.
    deadline = time.monotonic() + _PATIENCE_S
    while not _find_child() and time.monotonic() < deadline:
        time.sleep(0.005)


def _find_child():
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                if TAG.encode() in (folder / "cmdline").read_bytes():
                    return True
            except OSError:
                pass  # it has just ended, or is none of ours
    return False


TRACES = (
    Trace("thread", _find_thread, _leave_thread),
    Trace("child_process", _find_child, _leave_child),
)
