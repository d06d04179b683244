"""The child process that runs an engine: `python -m profile_export.engines.child`, talked to over its standard streams.

A process of its own, so that running out of memory or crashing ends an attempt and not the server. It ends with its
parent, whatever it is doing: the pipe it reads from closes.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import replace
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, BinaryIO

import duckdb

from profile_export.engines import memory
from profile_export.engines.duckdb_session import DuckDbSession
from profile_export.engines.failures import failed, source_paths
from profile_export.engines.protocol import (
    LENGTH,
    Close,
    Failed,
    FindMapping,
    MappingFound,
    Open,
    Ready,
    Resolve,
    Run,
    decode,
    encode,
)
from profile_export.engines.results import EngineProgress

_RESET_PEAK = "5"


class _Channel:
    """Messages in and out; progress may be sent from any thread."""

    def __init__(self, incoming: FileIO, outgoing: BinaryIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._sending = Lock()
        Thread(target=self._read, daemon=True).start()

    def receive(self) -> Any:
        return self._requests.get()

    def send(self, message: object) -> None:
        with self._sending:
            self._outgoing.write(encode(message))
            self._outgoing.flush()

    def progress(self, done: int, estimated: int) -> None:
        self.send(EngineProgress(done, estimated))

    def _read(self) -> None:
        while head := self._exactly(LENGTH.size):
            (length,) = LENGTH.unpack(head)
            self._requests.put(decode(self._exactly(length)))
        # The parent is gone: nobody waits for the query that may be running.
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


def main() -> None:
    """Serve requests until the parent closes the pipe."""
    # Ctrl-C goes to the whole group of processes; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outgoing = os.fdopen(os.dup(1), "wb")
    # Whatever else is printed must not get between the messages.
    os.dup2(2, 1)
    # Unbuffered, for a buffer's lock would be held by the reading thread whenever this process ends.
    channel = _Channel(FileIO(0, "rb", closefd=False), outgoing)
    channel.send(Ready())
    session: DuckDbSession | None = None
    sources: frozenset[str] = frozenset()
    while True:
        request = channel.receive()
        try:
            match request:
                case Open():
                    _reset_peak_memory()
                    sources = source_paths(request.plan)
                    session = _opened(request, channel)
                    answer: Any = Ready()
                case Resolve() if session is not None:
                    answer = replace(session.resolve(), peak_memory_bytes=_peak_memory())
                case FindMapping() if session is not None:
                    answer = MappingFound(session.mapping())
                case Run(key_range) if session is not None:
                    answer = replace(session.run(key_range), peak_memory_bytes=_peak_memory())
                case Close():
                    if session is not None:
                        session.close()
                    session, answer = None, Ready()
                case _:
                    message = f"unexpected request: {request!r}"
                    raise RuntimeError(message)
        except (duckdb.Error, OSError, MemoryError) as error:
            answer = failed(error, sources)
        channel.send(answer)
        if isinstance(answer, Failed) and answer.died:
            os._exit(1)


def _opened(request: Open, channel: _Channel) -> DuckDbSession:
    settings: dict[str, str | int] = {}
    limit, wanted = request.memory_limit_mb, request.threads
    if limit is not None:
        settings["memory_limit"] = f"{memory.duckdb_bytes(limit)}B"
        settings["threads"] = memory.threads(wanted, limit)
    elif wanted is not None:
        settings["threads"] = wanted
    return DuckDbSession(
        request.plan,
        request.lake_root,
        request.folder,
        settings,
        channel.progress,
        request.segment_folders,
    )


def _peak_memory() -> int:
    """Return the most memory this process has held since the attempt began, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak_memory() -> None:
    """Forget the peak of earlier attempts, where the system can."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists() and os.access(reset, os.W_OK):
        reset.write_text(_RESET_PEAK)


if __name__ == "__main__":
    main()
