"""What reading strangers' bytes may take: it grows with how many there are."""

from __future__ import annotations

from dataclasses import dataclass

from profile_export.processes.limits import Limits

_MEBIBYTE = 2**20
_MEGABYTE = 1_000_000
_SECONDS_PER_CPU_SECOND = 5
"""A machine that has other things to do is so many times slower."""
_BESIDE_ROWS = 200 * _MEGABYTE
_COPIES_OF_ROWS = 8
_MOST_HELD = 256 * _MEBIBYTE


@dataclass(frozen=True, slots=True)
class Expense:
    """What one file or schema may take to read.

    `cpu_seconds` and for each MiB of it `cpu_seconds_per_mib` more, five times that by the clock; `memory_mb` is what
    the process holds that reads it, in 10^6 bytes.
    """

    cpu_seconds: int = 30
    cpu_seconds_per_mib: int = 2
    memory_mb: int = 2_000

    def limits(self, byte_count: int) -> Limits:
        """Return the limits of so many bytes."""
        cpu_seconds = self.cpu_seconds + self.cpu_seconds_per_mib * byte_count / _MEBIBYTE
        return Limits(
            seconds=cpu_seconds * _SECONDS_PER_CPU_SECOND,
            cpu_seconds=cpu_seconds,
            memory_bytes=self.memory_mb * _MEGABYTE,
        )

    @property
    def bytes_held(self) -> int:
        """How many bytes of rows may wait for their file, so that all copies of them fit into the memory."""
        return min(_MOST_HELD, (self.memory_mb * _MEGABYTE - _BESIDE_ROWS) // _COPIES_OF_ROWS)
