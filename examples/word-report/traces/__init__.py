"""Every place where this function tries to leave a trace, and how it looks there.

Nothing here uses a privilege or a trick: it is what careless (or curious) code does
in a process that it believes to be its own.
"""

import errno

from traces import background, files, interpreter, process, shared, sockets
from traces.trace import Trace

__all__ = ["ALL", "Trace", "find", "leave"]

ALL = (
    *interpreter.TRACES,
    *process.TRACES,
    *files.TRACES,
    *shared.TRACES,
    *sockets.TRACES,
    *background.TRACES,
)


def find(traces):
    """Names of the traces that are there."""
    return [trace.name for trace in traces if trace.find()]


def leave(traces, found):
    """Leaves every trace that was not `found` already.

    Returns the names of those that are there afterwards, and why not of the others.
    """
    left, refused = [], {}
    for trace in traces:
        try:
            if trace.name not in found:
                trace.leave()
        except OSError as error:
            refused[trace.name] = errno.errorcode.get(error.errno, type(error).__name__)
        except Exception as error:  # what the interpreter itself refuses
            refused[trace.name] = type(error).__name__
        else:
            if trace.find():
                left.append(trace.name)
            else:
                # It would never be found: nobody may take that for "is clean".
                refused[trace.name] = "UNDETECTED"
    return left, refused
