"""A function that does what its event says, for the integration tests.

An event that is no object comes back as it is.
"""

import ctypes
import errno
import os
import random
import secrets
import socket
import ssl
import sys
import time
import uuid

import traces

CRYPTO = ctypes.CDLL("libcrypto.so.3")
CRYPTO.EVP_PKEY_Q_keygen.restype = ctypes.c_void_p


def ec_key():
    """A new P-256 key's public part, made by OpenSSL's generator for secrets."""
    key = CRYPTO.EVP_PKEY_Q_keygen(None, None, b"EC", ctypes.c_char_p(b"P-256"))
    key, out = ctypes.c_void_p(key), ctypes.c_void_p()
    length = CRYPTO.i2d_PUBKEY(key, ctypes.byref(out))
    return ctypes.string_at(out, length).hex()


def tls_hello():
    """The first bytes of a TLS connection: random numbers and the client's key shares."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        pass
    hello = outgoing.read()
    # RFC 8446, 4.1.2: a record's head of 5 bytes, a message's of 4, a version of 2.
    return {"random": hello[11:43].hex(), "session": hello[44:44 + hello[43]].hex()}


# What was made while the function was initialised: the same in every request of a snapshot.
BORN = {
    "id": uuid.uuid4().hex,
    "monotonic": time.monotonic(),
    "wall": time.time(),
    # Both generators have a state of their own from here on, and it is in the snapshot.
    "random": random.random(),
    "ssl": ssl.RAND_bytes(16).hex(),
    "ec_key": ec_key(),
    "tls_hello": tls_hello(),
}


def handler(event, context):
    now = {"wall": time.time(), "monotonic": time.monotonic()}
    if not isinstance(event, dict):
        return event
    return ACTIONS[event.get("do", "echo")](event, context, now)


def echo(event, context, now):
    return event


def facts(event, context, now):
    return {
        "born": BORN,
        "now": now,
        "environment": dict(os.environ),
        "context": {
            "function_name": context.function_name,
            "function_version": context.function_version,
            "invoked_function_arn": context.invoked_function_arn,
            "memory_limit_in_mb": context.memory_limit_in_mb,
            "aws_request_id": context.aws_request_id,
            "remaining_ms": context.get_remaining_time_in_millis(),
            "tenant_id": context.tenant_id,
            "custom": context.client_context and context.client_context.custom,
        },
    }


def text(path):
    with open(path) as file:
        return file.read().strip()


def draw(event, context, now):
    """Random numbers first, so that other machines can draw theirs meanwhile."""
    drawn = {
        "ec_key": ec_key(),
        "tls_hello": tls_hello(),
        "random": random.random(),
        "ssl": ssl.RAND_bytes(16).hex(),
        "secrets": secrets.token_hex(16),
        "urandom": os.urandom(16).hex(),
        "uuid4": str(uuid.uuid4()),
        "uuid1": str(uuid.uuid1()),
        "hostname": socket.gethostname(),
        "machine_id": text("/etc/machine-id"),
        "boot_id": text("/proc/sys/kernel/random/boot_id"),
        "born": BORN,
        "now": now,
    }
    time.sleep(event.get("seconds", 0))
    return drawn


def nap(event, context, now):
    time.sleep(event["seconds"])
    return {"napped": event["seconds"], "born": BORN}


def spin(event, context, now):
    while True:
        pass


def chat(event, context, now):
    """Much output to both streams, then an answer that depends on the event."""
    line = "x" * 999
    for _ in range(event["lines"]):
        print(line)
        print(line, file=sys.stderr)
    # The streams are two pipes: which one's end comes last is open.
    print("the last word", flush=True)
    print("the last word", file=sys.stderr, flush=True)
    return len(event.get("ballast", ""))


def count(event, context, now):
    """Numbered lines to both streams, in turns."""
    for number in range(event["lines"]):
        for stream in (sys.stdout, sys.stderr):
            print(number, "x" * 990, file=stream, flush=True)


def large(event, context, now):
    return "x" * event["bytes"]


def dirty(event, context, now):
    """Writes to each of so many pages."""
    pages = bytearray(event["pages"] * 4096)
    for offset in range(0, len(pages), 4096):
        pages[offset] = 1
    return event["pages"]


def write(event, context, now):
    try:
        with open(event["path"], "a") as file:
            file.write("written")
    except OSError as error:
        return errno.errorcode[error.errno]
    return "written"


def hoard(event, context, now):
    """Takes memory until there is no more."""
    kept = []
    while True:
        kept.append(bytearray(os.urandom(4096)) * 256)


def leave(event, context, now):
    """Leaves every trace and ends as the event says."""
    found_before = traces.find()
    traces.leave()
    left = traces.find()
    return ACTIONS[event.get("then", "echo")]({"before": found_before, "left": left}, context, now)


def find(event, context, now):
    return traces.find()


def fail(event, context, now):
    raise ValueError("this handler fails")


def leave_by_exit(event, context, now):
    sys.exit(event.get("status", 3))


def leave_at_once(event, context, now):
    os._exit(event.get("status", 4))


def signal_self(event, context, now):
    os.kill(os.getpid(), event["signal"])


ACTIONS = {
    action.__name__: action
    for action in (
        echo, facts, draw, nap, spin, chat, count, large, dirty, write, hoard, leave, find, fail,
        leave_by_exit, leave_at_once, signal_self,
    )
}
