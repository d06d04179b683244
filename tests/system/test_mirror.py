from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mirroring import World

ROOT = Path(__file__).parents[2]
DATASET = "d1"


class Mirrors:
    """Two mirrors that run at once, killed and begun anew."""

    def __init__(self, nursery: subprocess.Popen[str], data_dir: Path) -> None:
        self._nursery = nursery
        self._data_dir = data_dir
        self.running: list[int] = []

    def begin(self) -> None:
        assert self._nursery.stdin
        assert self._nursery.stdout
        self._nursery.stdin.write(f"{self._data_dir}\n")
        self._nursery.stdin.flush()
        self.running.append(int(self._nursery.stdout.readline()))

    def kill(self) -> None:
        os.kill(self.running.pop(0), signal.SIGKILL)


@pytest.fixture
def nursery() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.system.mirror_processes"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_mirrors_killed_at_any_moment_and_run_twice_at_once_hold_each_batch_once(
    nursery: subprocess.Popen[str], tmp_path: Path
) -> None:
    # `make chaos` runs the long form.
    kills = 100 if os.environ.get("KILLS") else 20
    # given batches that come and go, and a table that is dropped now and then, while two mirrors follow, one of which
    # is killed again and again
    chance = random.Random(kills)
    world = World(tmp_path)
    await world.database.open()
    await world.dataset(DATASET)
    mirrors = Mirrors(nursery, tmp_path)
    await world.batch(DATASET, "first", [{"n": 0}])
    counting = ["first"]
    mirrors.begin()
    while not world.held(DATASET):
        pass
    seen: list[list[str]] = []
    for number in range(kills):
        while len(mirrors.running) < 2:
            mirrors.begin()
        for part in range(chance.randint(0, 2)):
            rows = [
                {"n": number} if number < kills // 2 else {"n": number / 2}
            ]  # the type grows wider half-way
            await world.batch(DATASET, f"b{number}-{part}", rows)
            counting.append(f"b{number}-{part}")
        if counting and chance.random() < 0.4:
            gone = counting.pop(chance.randrange(len(counting)))
            await world.revert(gone)
        if chance.random() < 0.05:
            world.tables.drop(world.mirrored(DATASET))
        # Time is counted in looks, which take longer on a busy machine, as commits do.
        seen.extend(world.held(DATASET) for _ in range(chance.randint(0, 16)))
        mirrors.kill()

    # when they are gone, and one more follows in peace
    while mirrors.running:
        mirrors.kill()
    await world.mirrors.release_all()
    await world.follow()

    # then every batch that counts is there once, and nothing was ever there twice
    assert len({tuple(held) for held in seen}) > 2, "the mirrors that were killed had hardly changed anything"
    assert world.held(DATASET) == sorted(counting)
    assert all(len(held) == len(set(held)) for held in seen)
    status = await world.status(DATASET)
    assert (status.mirrored_batches, status.pending_changes, status.error_message) == (len(counting), 0, "")

    # and dropped and built anew, the table holds the same
    world.tables.drop(world.mirrored(DATASET))
    await world.mirrors.release_all()
    await world.follow()
    assert world.held(DATASET) == sorted(counting)
    await world.database.close()
