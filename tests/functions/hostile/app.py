"""A function that tries what it should not be able to do, as its event says."""

import ctypes
import errno
import http.client
import os
import socket
import sys
import threading
import time

API = os.environ["AWS_LAMBDA_RUNTIME_API"]


def attempt(what):
    """The error that it ends with, or what it returns."""
    try:
        return what()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def text(path):
    with open(path) as file:
        return file.read()


def confinement(event):
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name, *arguments):
        ctypes.set_errno(0)
        result = getattr(libc, name)(*arguments)
        return errno.errorcode.get(ctypes.get_errno()) if result == -1 else result

    status = dict(
        line.split(":\t", 1) for line in text("/proc/self/status").splitlines() if ":\t" in line
    )
    return {
        "uid": os.getuid(),
        "groups": os.getgroups(),
        "capabilities": [status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")],
        "no_new_privs": status["NoNewPrivs"],
        "vsock": attempt(lambda: socket.socket(40, socket.SOCK_STREAM).connect((2, 1024))),
        "vsock_datagram": attempt(lambda: socket.socket(40, socket.SOCK_DGRAM).fileno()),
        "packet": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).fileno()),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit())[:1],
        "init": attempt(lambda: os.listdir("/proc/1")),
        "sysctl": attempt(lambda: open("/proc/sys/kernel/hostname", "w")),
        "sysrq": attempt(lambda: open("/proc/sysrq-trigger", "w")),
        "firmware": os.listdir("/sys/firmware"),
        "sys": attempt(lambda: open("/sys/kernel/uevent_seqnum", "w")),
        "disk": attempt(lambda: open("/dev/vda", "rb")),
        "console": attempt(lambda: open("/dev/ttyS0", "w")),
        "namespace": call("unshare", 0x10000000),
        "mount": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "clock": attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, 0)),
        "reboot": call("reboot", 0x01234567),
        "kill_init": attempt(lambda: os.kill(1, 9)),
        "hosts": text("/etc/hosts"),
        "resolv_conf": text("/etc/resolv.conf"),
        "machine_id": attempt(lambda: open("/etc/machine-id", "w")),
        "named": socket.gethostname() == text("/etc/hostname").strip(),
    }


def fork_bomb(event):
    """Children that fork on, until nothing forks any more."""
    forked = 0
    while True:
        try:
            if os.fork() == 0:
                while True:
                    try:
                        if os.fork() == 0:
                            time.sleep(60)
                    except OSError:
                        time.sleep(60)
        except OSError as error:
            return {"forked": forked, "error": errno.errorcode[error.errno]}
        forked += 1


def full_tmp(event):
    """What was in /tmp before, the error that filling it ends with, and how much it took."""
    before = os.listdir("/tmp")

    def fill():
        with open("/tmp/full", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    error = attempt(fill)
    return {"before": before, "error": error, "mib": os.path.getsize("/tmp/full") >> 20}


def hoard(event):
    kept = []
    while True:
        kept.append(bytearray(os.urandom(4096)) * 256)


def closed_output(event):
    sys.stdout.flush()
    os.close(1)
    os.close(2)
    return "answered"


def flood(event):
    """Connections without end, some of which say half a request."""
    host, port = API.split(":")
    opened = []
    for number in range(300):
        connection = socket.create_connection((host, int(port)))
        if number % 2:
            connection.send(b"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nContent-Le")
        opened.append(connection)
    return len(opened)


def closed_api(event):
    """Closes every socket of the process, the runtime's to the Runtime API among them."""
    closed = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.close(int(name))
                closed += 1
        except OSError:
            pass
    return {"closed": closed}


def wrong_calls(event):
    outcomes = []
    for method, path in event["calls"]:
        connection = http.client.HTTPConnection(API)
        connection.request(method, path, b"{}" if method == "POST" else None)
        outcomes.append(connection.getresponse().status)
    return outcomes


def noise(event):
    sys.stdout.buffer.write(b"x" * (64 * 1024) + b"\n")
    sys.stdout.buffer.write(bytes(range(256)) * 16 + b"\nthe end\n")
    sys.stdout.flush()
    return "said"


def stragglers(event):
    """Processes and threads that outlive the answer."""
    for _ in range(8):
        if os.fork() == 0:
            os.setsid()
            while True:
                pass
    threading.Thread(target=lambda: time.sleep(60), daemon=True).start()
    return "left"


def handler(event, context):
    return globals()[event["do"]](event)
