"""Traces in what the kernel keeps of this process."""

import os
import resource
import signal
from pathlib import Path

from traces.trace import TAG, Trace, changed

_FAR = 86_400.0
_COMM = Path("/proc/self/comm")


def _umask():
    # It can only be read by setting it.
    mask = os.umask(0o777)
    os.umask(mask)
    return mask


def _lower_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = 960 if soft == resource.RLIM_INFINITY else soft - 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))


def _leave_descriptor():
    # Nobody closes it.
    os.write(os.memfd_create(TAG), b"left open")


def _find_descriptor():
    # Through a list: reading the directory has a descriptor of its own.
    for number in os.listdir("/proc/self/fd"):
        try:
            if TAG in os.readlink(f"/proc/self/fd/{number}"):
                return True
        except FileNotFoundError:
            pass
    return False


TRACES = (
    Trace("environment", lambda: TAG in os.environ, lambda: os.environ.update({TAG: "left"})),
    changed("working_directory", os.getcwd, lambda: os.chdir("/tmp")),
    changed("umask", _umask, lambda: os.umask(0o123)),
    changed("resource_limit", lambda: resource.getrlimit(resource.RLIMIT_NOFILE), _lower_limit),
    changed("niceness", lambda: os.nice(0), lambda: os.nice(1)),
    changed("process_name", _COMM.read_text, lambda: _COMM.write_text("left")),
    changed(
        "signal_handler",
        lambda: signal.getsignal(signal.SIGUSR1),
        lambda: signal.signal(signal.SIGUSR1, lambda number, frame: None),
    ),
    Trace(
        "timer",
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        lambda: signal.setitimer(signal.ITIMER_REAL, _FAR),
    ),
    Trace("open_descriptor", _find_descriptor, _leave_descriptor),
)
