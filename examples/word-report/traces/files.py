"""Traces in files.

`TRACE_ROOT` stands for "/" where this function's own test runs it on a developer's host.
"""

import errno
import os
from pathlib import Path

from traces.trace import TAG, Trace

_ROOT = Path(os.environ.get("TRACE_ROOT", "/"))
_SKIPPED = {_ROOT / "proc", _ROOT / "sys"}
_MOST_FOLDERS = 4000


def _folder(path):
    return _ROOT / path.lstrip("/")


_KNOWN = {
    "tmp_file": _folder("/tmp"),
    "overlay_file": _folder("/var/tmp"),
    "home_file": _folder(os.path.expanduser("~")),
    "dev_shm_file": _folder("/dev/shm"),
    # Read-only, as on Lambda.
    "task_file": _folder("/var/task"),
}
_PIPE = _KNOWN["tmp_file"] / f"{TAG}-pipe"


def _other_writable():
    """Every other folder in which this user may make files."""
    writable, seen = [], 0
    for folder, below, _ in os.walk(_ROOT):
        folder = Path(folder)
        below[:] = [name for name in below if folder / name not in _SKIPPED]
        if folder not in _KNOWN.values() and os.access(folder, os.W_OK | os.X_OK):
            writable.append(folder)
        seen += 1
        if seen == _MOST_FOLDERS:
            break
    return writable


# Looked for when the function is initialised: that is slow, and stays true.
_OTHERS = _other_writable()


def _write(folder):
    with open(folder / TAG, "ab") as file:
        file.write(b"left behind\n" * 1000)


def _file(name, folder):
    return Trace(name, (folder / TAG).exists, lambda: _write(folder))


def _write_others():
    if not _OTHERS:
        raise FileNotFoundError(errno.ENOENT, "there is no other folder to write to")
    for folder in _OTHERS:
        _write(folder)


def _leave_pipe():
    os.mkfifo(_PIPE)


TRACES = (
    *(_file(name, folder) for name, folder in _KNOWN.items()),
    Trace(
        "other_files",
        lambda: any((folder / TAG).exists() for folder in _OTHERS),
        _write_others,
    ),
    Trace("named_pipe", _PIPE.exists, _leave_pipe),
)
