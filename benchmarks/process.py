"""Work in a process of its own, and what it costs."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Time, processor time, and the most memory that the process has held."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def in_child(work: Callable[[], Cost]) -> Cost:
    """Let a fresh process do something that measures itself."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
        return child.submit(work).result()


def cost_of(work: Callable[[], object]) -> Cost:
    """Do something and say what it cost; the memory is that of the whole process so far."""
    began, cpu_began = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), 0)
    return Cost(seconds, cpu_seconds, peak)
