"""No call holds the event loop up, however wide its tenant's data is: what grows is computed beside it."""

from __future__ import annotations

import asyncio
import gc
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import grpc
import grpc.aio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from profile_export.app import Application
from profile_export.config import load
from profile_export.lake.rows import first_rows
from profile_export.v1 import dataset_pb2, job_pb2, profile_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import profile_service_pb2 as ps
from profile_export.v1 import schema_service_pb2 as ss
from tests.service.conftest import settings_for
from tests.service.harness import Caller, json_lines, replay, upload_messages

MOST_LAG_SECONDS = 0.1
TRIES = 4
_TEXT = dataset_pb2.FieldType(scalar=dataset_pb2.SCALAR_TYPE_STRING)


class Lag:
    """How late the loop calls one that sleeps for five milliseconds again and again.

    What the process waits for a processor is not its own doing, and is left out.
    """

    def __init__(self) -> None:
        self.most = 0.0

    async def watch(self) -> None:
        while True:
            due, used = time.perf_counter() + 0.005, time.process_time()
            await asyncio.sleep(0.005)
            late, busy = time.perf_counter() - due, time.process_time() - used
            self.most = max(self.most, min(late, busy))


@asynccontextmanager
async def lag() -> AsyncIterator[Lag]:
    watched = Lag()
    watching = asyncio.create_task(watched.watch())
    try:
        yield watched
    finally:
        watching.cancel()


@dataclass
class Wide:
    """A tenant with as many fields as may be, spread over datasets of one shape."""

    caller: Caller
    records: list[str]
    union: str
    narrow: str = ""
    paths: list[str] = field(default_factory=list)


def declared(paths: list[str]) -> list[dataset_pb2.FieldDeclaration]:
    return [dataset_pb2.FieldDeclaration(path=path, type=_TEXT) for path in paths]


def new_dataset(paths: list[str]) -> ds.CreateDatasetRequest:
    return ds.CreateDatasetRequest(
        name="wide",
        schema_ref=dataset_pb2.SchemaRef(id="https://ns.adobe.com/xdm/context/profile"),
        identity_fields=[dataset_pb2.IdentityField(path="crm.id", namespace="CRM", primary=True)],
        declared_fields=declared(paths),
    )


SHAPES: Mapping[str, tuple[int, Callable[[int, int], str]]] = {
    "one level": (2, lambda dataset, number: f"field_{number % 5_000:05}_{dataset}"),
    # A job takes twice as long for each level more.
    "nested deep": (2, lambda _, number: f"a.b.c.d.e.f.g.h.g{number // 500}.f{number}"),
    "many objects": (2, lambda _, number: f"object{number // 10}.with.some.leaf_{number % 10}"),
    "long names": (2, lambda dataset, number: f"object{number % 3}.{'x' * 60}{number}_{dataset}"),
    "many datasets": (40, lambda dataset, number: f"of{dataset % 20}.field{number % 500}"),
}
FIELDS = 10_000


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[grpc.aio.Channel]:
    application = Application(load(settings_for(tmp_path_factory.mktemp("wide")), {}))
    await application.start()
    gc.collect()
    gc.freeze()  # as the server does when it is ready
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        yield channel
    await application.stop()
    gc.unfreeze()


async def wide_tenant(channel: grpc.aio.Channel, shape: str) -> Wide:
    datasets, name = SHAPES[shape]
    caller = Caller(channel, f"org-{secrets.token_hex(6)}")
    wide = Wide(caller, [], await caller.dataset("union"))
    each = FIELDS // datasets
    for dataset in range(datasets):
        paths = [name(dataset, dataset * each + number) for number in range(each)]
        made = await caller.datasets.CreateDataset(new_dataset(paths[:4_000]), metadata=caller.metadata)
        wide.records.append(made.dataset.id)
        wide.paths += paths[:4_000]
    wide.narrow = await caller.dataset("record", {"crm.id": "CRM"})
    await caller.upload(wide.narrow, "b1", [{"crm": {"id": "7"}}])
    return wide


def calls(wide: Wide, tries: int) -> Mapping[str, Callable[[], Awaitable[object]]]:
    """One call of every method that grows with fields, by name."""
    caller, first = wide.caller, wide.records[0]
    to = caller.metadata
    path, unknown = wide.paths[-1], [f"{path}#" for path in wide.paths[:90]]
    destination = job_pb2.ExportDestination(dataset_id=wide.union)
    identity = profile_pb2.Identity(namespace="CRM", id="7")

    def estimate(fields: list[str]) -> Awaitable[object]:
        spec = job_pb2.ExportSpec(destination=destination, fields=fields)
        return caller.exports.EstimateJob(es.EstimateJobRequest(spec=spec), metadata=to)

    def create(fields: list[str]) -> Awaitable[object]:
        spec = job_pb2.ExportSpec(destination=destination, fields=fields)
        return caller.exports.CreateJob(es.CreateJobRequest(spec=spec), metadata=to)

    def profile(fields: list[str]) -> Awaitable[object]:
        return caller.profiles.GetProfile(ps.GetProfileRequest(identity=identity, fields=fields), metadata=to)

    # Made before the loop is watched, which is also this client's.
    same = new_dataset(wide.paths[:4_000])
    more = declared([f"more{tries}.{'y' * 30}{number}" for number in range(500)])
    grown = ds.UpdateDatasetRequest(dataset_id=first, add_declared_fields=more)

    def upload() -> Awaitable[object]:
        row = {"crm": {"id": "8"}, **{f"sent{tries}_{number}": "x" for number in range(100)}}
        messages = upload_messages(
            wide.narrow, f"sent{tries}", json_lines([row]), ds.UPLOAD_FORMAT_JSON_LINES
        )
        return caller.datasets.UploadBatch(replay(messages), metadata=to)

    async def job() -> object:
        return await caller.export(wide.union, fields=[path])

    return {
        "ListDatasets": lambda: caller.datasets.ListDatasets(
            ds.ListDatasetsRequest(page_size=1_000), metadata=to
        ),
        "GetDataset": lambda: caller.datasets.GetDataset(ds.GetDatasetRequest(dataset_id=first), metadata=to),
        "GetUnionSchema": lambda: caller.schemas.GetUnionSchema(
            ss.GetUnionSchemaRequest(schema_name="_xdm.context.profile"), metadata=to
        ),
        "CreateJob, an unknown path": lambda: create([f"{path}#"]),
        "CreateJob, one path again and again": lambda: create([path] * 3_000),
        "EstimateJob, many unknown paths": lambda: estimate(unknown),
        "EstimateJob, paths of the greatest length": lambda: estimate(["z" * 1_000, *(["z." * 500] * 30)]),
        "GetProfile": lambda: profile([]),
        "GetProfile, an unknown path": lambda: profile([f"{path}#"]),
        "ListProfileEvents": lambda: caller.profiles.ListProfileEvents(
            ps.ListProfileEventsRequest(identity=identity), metadata=to
        ),
        "CreateDataset": lambda: caller.datasets.CreateDataset(same, metadata=to),
        "UpdateDataset": lambda: caller.datasets.UpdateDataset(grown, metadata=to),
        "UploadBatch": upload,
        "a whole job": job,
    }


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
async def test_no_call_about_wide_data_holds_the_loop_up(server: grpc.aio.Channel, shape: str) -> None:
    wide = await wide_tenant(server, shape)
    lags: dict[str, float] = {}
    for tried in range(TRIES):
        for name, call in calls(wide, tried).items():
            if lags.get(name, 1.0) <= MOST_LAG_SECONDS:
                continue
            async with lag() as watched:
                with suppress(grpc.aio.AioRpcError):
                    await call()
            lags[name] = min(watched.most, lags.get(name, 1.0))
    for name, most in sorted(lags.items(), key=lambda one: -one[1]):
        print(f"{shape:14} {name:45} {most * 1_000:6.0f} ms")  # noqa: T201 - what the test is about

    assert max(lags.values()) <= MOST_LAG_SECONDS


FILES: Mapping[str, Callable[[], pa.Table]] = {
    "many columns": lambda: pa.table({f"c{number}": [number] * 120 for number in range(5_000)}),
    "wide objects": lambda: pa.Table.from_pylist(
        [{"row": row, "part": {f"w{number}": number for number in range(1_000)}} for row in range(30)]
    ),
    "long lists": lambda: pa.table({"l": pa.array([[True] * 99_000] * 12, pa.list_(pa.bool_()))}),
    "one long list": lambda: pa.table({"l": pa.array([[]] * 99 + [[1] * 99_000], pa.list_(pa.int64()))}),
    "long maps": lambda: pa.table(
        {"m": pa.array([[(f"k{key}", key) for key in range(5_000)]] * 50, pa.map_(pa.string(), pa.int64()))}
    ),
}


def lag_beside(work: Callable[[], object]) -> float:
    """Do something in this thread, and return how late another one was meanwhile, at the most."""
    ended, lags = threading.Event(), [0.0]

    def another() -> None:
        while not ended.is_set():
            due, used = time.perf_counter() + 0.005, time.process_time()
            time.sleep(0.005)
            # What the machine's other processes take is not the work's doing.
            lags.append(min(time.perf_counter() - due, time.process_time() - used))

    beside = threading.Thread(target=another)
    beside.start()
    work()
    ended.set()
    beside.join()
    return max(lags)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_look_into_a_file_lets_others_in(tmp_path: Path, name: str) -> None:
    path, table = tmp_path / "file.parquet", FILES[name]()
    pq.write_table(table, path)

    def look() -> list[dict[str, object]]:
        return list(islice(first_rows([path]), 100))

    assert look() == table.slice(0, 100).to_pylist(maps_as_pydicts="strict")
    assert any(lag_beside(look) <= MOST_LAG_SECONDS for _ in range(TRIES))
