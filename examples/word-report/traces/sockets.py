"""Traces in the network: sockets that listen."""

import errno
import os
import socket

from traces.trace import TAG, Trace

# Below the range from which the kernel takes a caller's port.
_TCP = ("127.0.0.1", int(os.environ.get("TRACE_PORT", "20171")))
_ABSTRACT = f"\0{TAG}"
_kept = []


def _is_taken(family, address):
    # Only a listener keeps an address from being bound: there are no connections.
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(address)
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _listen(family, address):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen()
    _kept.append(listener)


def _socket(name, family, address):
    return Trace(name, lambda: _is_taken(family, address), lambda: _listen(family, address))


TRACES = (
    _socket("tcp_socket", socket.AF_INET, _TCP),
    _socket("abstract_socket", socket.AF_UNIX, _ABSTRACT),
)
