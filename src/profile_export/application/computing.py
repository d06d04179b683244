"""What takes long of reading a request or writing an answer: doors do it beside the loop, in the tenant's name."""

from __future__ import annotations

from profile_export.processes.computing import compute, compute_for, compute_if

__all__ = ["compute", "compute_for", "compute_if"]
