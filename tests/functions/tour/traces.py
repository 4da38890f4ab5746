"""The traces that a request tries to leave, and how the next one would see them."""

import errno
import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

TAG = "snapback-trace"
PORT = 4711
HOME = os.getcwd()

state = {"calls": 0}
_kept = []


def _exists(folder):
    return (Path(folder) / TAG).exists()


def _write(folder):
    (Path(folder) / TAG).write_text("left behind\n" * 1000)


def _start_thread():
    def tick():
        while True:
            state["ticks"] = state.get("ticks", 0) + 1
            time.sleep(0.01)

    threading.Thread(target=tick, name=TAG, daemon=True).start()


def _has_child():
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if TAG.encode() in (folder / "cmdline").read_bytes():
                    return True
            except OSError:
                pass  # it has just ended
    return False


def _start_child():
    # In a session of its own, and never waited for.
    subprocess.Popen(
        ["/bin/sh", "-c", "while :; do sleep 3600; done", TAG],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _port_is_taken():
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _take_port():
    taken = socket.socket()
    taken.bind(("127.0.0.1", PORT))
    taken.listen()
    _kept.append(taken)


# Name: (how it is seen, how it is left).
TRACES = {
    "global": (lambda: state["calls"] > 0, lambda: state.update(calls=1)),
    "module_attribute": (lambda: hasattr(json, "trace"), lambda: setattr(json, "trace", TAG)),
    "environment_variable": (
        lambda: "TRACE" in os.environ,
        lambda: os.environ.update(TRACE=TAG),
    ),
    "tmp_file": (lambda: _exists("/tmp"), lambda: _write("/tmp")),
    "var_tmp_file": (lambda: _exists("/var/tmp"), lambda: _write("/var/tmp")),
    "shared_memory": (lambda: _exists("/dev/shm"), lambda: _write("/dev/shm")),
    "thread": (
        lambda: any(thread.name == TAG for thread in threading.enumerate()),
        _start_thread,
    ),
    "child_process": (_has_child, _start_child),
    "bound_socket": (_port_is_taken, _take_port),
    "working_directory": (lambda: os.getcwd() != HOME, lambda: os.chdir("/tmp")),
}


def find():
    """Names of the traces that are there."""
    return sorted(name for name, (is_there, _) in TRACES.items() if is_there())


def leave():
    for _, put in TRACES.values():
        put()
