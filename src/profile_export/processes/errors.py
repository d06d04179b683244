"""How work in a child process fails, other than by what it raises itself."""

from __future__ import annotations

import signal

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
