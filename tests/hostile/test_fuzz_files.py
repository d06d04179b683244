"""Files that were good once: each counts whole or is refused whole, and whoever uploads next does not wait for it.

Here it is short. `make fuzz` runs the long form, `FILES` of them; `SEED` makes the same files again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import count, islice
from pathlib import Path
from random import Random

import grpc.aio
import pytest
import pytest_asyncio

from profile_export.v1 import batch_pb2, dataset_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.hostile.attacked import Attacked, attacked
from tests.hostile.files import Sent, damaged, good_files
from tests.hostile.outcomes import faults_of
from tests.service.harness import Caller

LONG = "FILES" in os.environ
FILES = int(os.environ.get("FILES", "50"))
AT_ONCE = 2
MOST_WAIT_SECONDS, TIMES_ALONE = 5.0, 10
"""What a one-row upload may take beside such files, a new process for one that had to be ended included; on a busy
machine this many times what it takes alone."""
TRIES = 3
PATIENCE_SECONDS = 90
OVER = {batch_pb2.BATCH_STATE_FAILED, batch_pb2.BATCH_STATE_ABORTED}


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Attacked]:
    async with attacked(tmp_path) as opened:
        yield opened


class Neighbour:
    """Another tenant, who uploads one row at a time."""

    def __init__(self, caller: Caller, dataset: str) -> None:
        self._caller, self._dataset = caller, dataset
        self._numbers = count()
        self.slowest = 0.0

    async def upload(self) -> float:
        """Upload a row, and return how long it took."""
        batch = f"n{next(self._numbers)}"
        begun = time.monotonic()
        await self._caller.upload(self._dataset, batch, [{"crmId": batch}])
        took = time.monotonic() - begun
        self.slowest = max(self.slowest, took)
        return took


@pytest.mark.slow
@pytest.mark.timeout(86_400 if LONG else 300)
async def test_a_damaged_file_counts_whole_or_leaves_nothing_and_keeps_nobody_waiting(
    server: Attacked, seed: str, pytestconfig: pytest.Config
) -> None:
    dice, good = Random(seed), good_files()
    async with server.channel() as channel:
        caller, other = (Caller(channel, secrets.token_hex(6)) for _ in range(2))
        neighbour = Neighbour(other, await other.dataset("record", {"crmId": "CRM"}))
        for number, one in enumerate(good):
            assert (
                await caller.send(await records(caller), f"g{number}", one.content, one.format)
            ).batch.rows, one.name
        alone = sorted([await neighbour.upload() for _ in range(5)])[2]
        limit = max(MOST_WAIT_SECONDS, TIMES_ALONE * alone)
        neighbour.slowest = 0.0

        codes: Counter[str] = Counter()
        faults: list[str] = []
        waiting = iter([(number, damaged(dice, good)) for number in range(FILES)])

        async def one_after_the_other() -> None:
            dataset = await records(caller)
            for number, file in waiting:
                code, found = await outcome(caller, dataset, f"b{number}", file, secret)
                if code == "OK":  # the next one is not to meet its fields
                    await caller.delete(dataset)
                    dataset = await records(caller)
                codes[code] += 1
                faults.extend(f"{number}, {file.name}: {fault}" for fault in found)
                waits = [await neighbour.upload()]
                while min(waits) > limit and len(waits) < TRIES:  # what a file is to blame for repeats
                    again = await records(caller)
                    await outcome(caller, again, f"b{number}-{len(waits)}", file, secret)
                    waits.append(await neighbour.upload())
                if (took := min(waits)) > limit:
                    faults.append(
                        f"{number}, {file.name}: the next upload took {took:.1f} s, limit {limit:.1f}"
                    )

        secret = (str(server.data_dir.parent), str(pytestconfig.rootpath))
        await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))

    # The figures, and the seed with a failure.
    print(f"{dict(codes.most_common())}, next upload {neighbour.slowest:.2f} s, alone {alone:.2f} s")  # noqa: T201
    assert not faults, f"{len(faults)} faults, such as\n" + "\n".join(islice(faults, 20))
    assert server.errors() == []
    assert [str(path) for path in (server.data_dir / "uploads").iterdir()] == []


async def records(caller: Caller) -> str:
    """Make a dataset of records whose fields do not have to agree with those of others."""
    alone = {"unifiedProfile": dataset_pb2.TagValues(values=["enabled:false"])}
    return await caller.dataset("record", {"crmId": "CRM"}, tags=alone)


async def outcome(
    caller: Caller, dataset: str, batch_id: str, file: Sent, secret: tuple[str, ...]
) -> tuple[str, list[str]]:
    """Upload a file into a dataset without batches; return how that ended, and what was wrong about it."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            sent = await caller.send(dataset, batch_id, file.content, file.format)
    except TimeoutError:
        return "no answer", [f"no answer in {PATIENCE_SECONDS} s"]
    except grpc.aio.AioRpcError as error:
        return error.code().name, [
            *faults_of(error, [file.content.decode(errors="ignore")], secret),
            *await _left(caller, dataset, batch_id),
        ]
    return "OK", await _insane(caller, dataset, sent.batch)


async def _left(caller: Caller, dataset: str, batch_id: str) -> list[str]:
    """Return what is to be seen of a file that was refused, and should not."""
    found = []
    if await caller.visible_batches(dataset):
        found.append("it counts")
    batch = await caller.batch(batch_id)
    if batch.state not in OVER or batch.file_count:
        found.append(f"its batch is {batch}")
    fields = {field.name for field in (await caller.get_dataset(dataset)).fields}
    if "person" in fields:
        found.append("its fields are there")
    return found


async def _insane(caller: Caller, dataset: str, batch: batch_pb2.Batch) -> list[str]:
    """Return what is wrong with what a file has become."""
    found = []
    try:
        rows = await caller.rows(batch.id)
        keys = [(row["_batch_id"], row["_namespace"], row["_identity"]) for row in rows]
    except Exception as error:  # noqa: BLE001 - whatever it is, it cannot be read
        return [f"its rows cannot be read: {error!r}"]
    if len(rows) != batch.rows or any(batch_id != batch.id or not all(rest) for batch_id, *rest in keys):
        found.append(f"{batch.rows} rows told, and read {keys[:5]}")
    preview = ds.PreviewDatasetRequest(dataset_id=dataset, row_count=100)
    try:
        await caller.datasets.PreviewDataset(preview, metadata=caller.metadata)
    except grpc.aio.AioRpcError as error:
        found.append(f"its preview ends with {error.code().name}: {error.details()}")
    return found
