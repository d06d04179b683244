"""The program of every child: `python -m profile_export.processes.child`, talked to over its standard streams.

A process of its own, so that running out of memory, crashing or being too slow ends a piece of work and not the server.
It ends with its parent, whatever it is doing: the pipe it reads from closes, and the system is told to see to it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, BinaryIO

from profile_export.processes.messages import (
    LENGTH,
    Ask,
    Done,
    Guest,
    Hold,
    Limits,
    Load,
    Raised,
    Run,
    Said,
    WorkFailedError,
    decode,
    encode,
)

_CONTAINERS_BETWEEN_COLLECTIONS = 50_000
"""Thousands of parsed records wait for Arrow, none of them in a cycle; looking for cycles took a fifth of the time."""
_RESERVED_BYTES = 500_000_000
"""What a child reserves of the system's memory without using it: libraries' data, stacks of threads."""
_PR_SET_PDEATHSIG = 1


class _Channel:
    """Messages in and out; what is said on the way may come from any thread."""

    def __init__(self, incoming: FileIO, outgoing: BinaryIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._requests: SimpleQueue[bytes] = SimpleQueue()
        self._sending = Lock()
        Thread(target=self._read, daemon=True).start()

    def receive(self) -> bytes:
        """Wait for the next request, and return it undecoded."""
        return self._requests.get()

    def send(self, message: object) -> None:
        """Send a message; raises where it cannot be pickled, and has sent nothing then."""
        encoded = encode(message)
        with self._sending:
            self._outgoing.write(encoded)
            self._outgoing.flush()

    def say(self, what: object) -> None:
        """Send something on the way to the answer."""
        self.send(Said(what))

    def _read(self) -> None:
        while head := self._exactly(LENGTH.size):
            (length,) = LENGTH.unpack(head)
            self._requests.put(self._exactly(length))
        # The parent is gone: nobody waits for what may be running.
        os._exit(0)

    def _exactly(self, length: int) -> bytes:
        """Read so many bytes; none if the pipe closes before."""
        found = bytearray()
        while len(found) < length:
            piece = self._incoming.read(length - len(found))
            if not piece:
                return b""
            found += piece
        return bytes(found)


def main(niceness: int) -> None:
    """Serve requests until the parent closes the pipe."""
    # Ctrl-C goes to the whole group of processes; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    os.nice(niceness)
    gc.set_threshold(_CONTAINERS_BETWEEN_COLLECTIONS)
    outgoing = os.fdopen(os.dup(1), "wb")
    # Whatever else is printed must not get between the messages.
    os.dup2(2, 1)
    # Unbuffered, for a buffer's lock would be held by the reading thread whenever this process ends.
    channel = _Channel(FileIO(0, "rb", closefd=False), outgoing)
    channel.send(Done(None))
    guests: list[Guest] = []
    while True:
        try:
            channel.send(Done(_answer(decode(channel.receive()), channel, guests)))
        except BaseException as error:  # noqa: BLE001 - also a panic of an extension: the parent decides what it means
            channel.send(Raised(_portable(error)))


def _answer(request: Any, channel: _Channel, guests: list[Guest]) -> Any:
    match request:
        case Load():
            return None
        case Run(work, task, limits):
            with _within(limits):
                return work(task)
        case Hold(make, task):
            guests.append(make(task, channel.say))
            return None
        case Ask(asked):
            return guests[-1].answer(asked)
    message = f"unexpected request: {request!r}"
    raise RuntimeError(message)


@contextmanager
def _within(limits: Limits) -> Iterator[None]:
    """Let the system keep work within limits, for what grows faster than the parent looks, or when it cannot look.

    These limits are wider than those of the parent, and soft, so that they can be lifted again.
    """
    if (memory := limits.memory_bytes) is not None:
        _limit(resource.RLIMIT_DATA, memory + memory // 4 + _RESERVED_BYTES)
    if limits.cpu_seconds is not None:
        _limit(resource.RLIMIT_CPU, int(time.process_time() + limits.cpu_seconds * 1.5 + 1) + 1)
    try:
        yield
    finally:
        for kind in (resource.RLIMIT_DATA, resource.RLIMIT_CPU):
            _limit(kind, resource.RLIM_INFINITY)


def _limit(kind: int, soft: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else hard, hard))


def _portable(error: BaseException) -> Exception:
    """Return an error as it can be sent, with where it was raised as a note."""
    told = "".join(traceback.format_exception(error))
    if isinstance(error, Exception):
        error.add_note(told)
        try:
            if type(pickle.loads(pickle.dumps(error))) is type(error):  # noqa: S301 - our own
                return error
        except Exception:  # noqa: BLE001, S110 - whatever keeps it from travelling
            pass
    failed = WorkFailedError(f"{type(error).__name__}: {error}")
    failed.add_note(told)
    return failed


def _die_with_parent() -> None:
    """Ask the system to end this process with its parent: the thread that reads may never get to run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
