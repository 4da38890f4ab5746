"""Traces in memory that outlives a process: POSIX and System V."""

import ctypes
import mmap
import os
import zlib

from traces.trace import TAG, Trace

_SIZE = 65_536
_IPC_CREAT = 0o1000
_KEY = zlib.crc32(TAG.encode()) & 0x7FFF_FFFF
_NAME = f"/{TAG}-shm".encode()

_libc = ctypes.CDLL(None, use_errno=True)
_kept = []


def _checked(result):
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _leave_posix():
    descriptor = _checked(_libc.shm_open(_NAME, os.O_CREAT | os.O_RDWR, 0o600))
    os.ftruncate(descriptor, _SIZE)
    memory = mmap.mmap(descriptor, _SIZE)
    os.close(descriptor)
    memory[:4] = b"left"
    _kept.append(memory)


def _find_posix():
    descriptor = _libc.shm_open(_NAME, os.O_RDONLY, 0)
    if descriptor == -1:
        return False
    os.close(descriptor)
    return True


TRACES = (
    Trace("posix_shared_memory", _find_posix, _leave_posix),
    Trace(
        "system_v_shared_memory",
        lambda: _libc.shmget(_KEY, 0, 0) != -1,
        lambda: _checked(_libc.shmget(_KEY, _SIZE, _IPC_CREAT | 0o600)),
    ),
    Trace(
        "system_v_semaphore",
        lambda: _libc.semget(_KEY, 0, 0) != -1,
        lambda: _checked(_libc.semget(_KEY, 1, _IPC_CREAT | 0o600)),
    ),
)
