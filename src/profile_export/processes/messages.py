"""What parent and child say to each other: pickled messages, each behind its length; and how a child's work fails.

The parent sends one request at a time; the child answers with any number of `Said` and one `Done` or `Raised`.
"""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any, Protocol

_OF_THE_CODE = {
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
    if hasattr(signal, name)
}


class ChildDiedError(Exception):
    """The process that did some work ended before it was done; it may be repeated.

    `exit_code` is as `subprocess` has it: negative for a signal. None: the process had not begun, or was told to end.
    """

    def __init__(self, exit_code: int | None = None) -> None:
        super().__init__("The process that did the work has ended.")
        self.exit_code = exit_code

    @property
    def is_crash(self) -> bool:
        """Whether the code itself broke, as it will again on the same input; else somebody killed the process."""
        return self.exit_code is not None and -self.exit_code in _OF_THE_CODE


class TooExpensiveError(Exception):
    """The work took more than it may, and was ended. The text says what was too much, such as `60 seconds of time`."""


class WorkFailedError(Exception):
    """The work raised what cannot travel between processes; the text and the notes tell what it was."""


LENGTH = Struct(">Q")
Say = Callable[[object], None]
"""Tells the parent something meanwhile; may be called from any thread."""


class Guest(Protocol):
    """What a child holds between requests, for a dialogue."""

    def answer(self, request: Any) -> Any:
        """Do what is asked and return what comes of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one piece of work may take, None: as much as it likes. `memory_bytes` is all that its process holds.

    The parent watches all three. The system, too, keeps the child from going far beyond two of them.
    """

    seconds: float | None = None
    cpu_seconds: float | None = None
    memory_bytes: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Load:
    """Do nothing: the function has been imported on its way here."""

    work: Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Run:
    """Do `work(task)`."""

    work: Callable[[Any], object]
    task: Any
    limits: Limits


@dataclass(frozen=True, slots=True)
class Hold:
    """Begin a dialogue with the guest that `make` makes."""

    make: Callable[[Any, Say], Guest]
    task: Any


@dataclass(frozen=True, slots=True)
class Ask:
    """Let the guest answer."""

    request: Any


@dataclass(frozen=True, slots=True)
class Said:
    """Something on the way to the answer."""

    what: Any


@dataclass(frozen=True, slots=True)
class Done:
    """The answer."""

    result: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The request failed."""

    error: Exception


def encode(message: object) -> bytes:
    """Write a message with its length in front."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Any:
    """Read a message; both ends are this program, so what is read can be trusted."""
    return pickle.loads(body)  # noqa: S301 - only our own process writes to this pipe
