from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import batch_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_PDG
from tests.service.conftest import settings_for
from tests.service.engines import Gate, GatedEngine, real_engine
from tests.service.harness import Caller, refusal_of

SUCCEEDED, FAILED, CANCELLED = (
    job_pb2.JOB_STATE_SUCCEEDED,
    job_pb2.JOB_STATE_FAILED,
    job_pb2.JOB_STATE_CANCELLED,
)
NEW, PROCESSING, CANCELLING = (
    job_pb2.JOB_STATE_NEW,
    job_pb2.JOB_STATE_PROCESSING,
    job_pb2.JOB_STATE_CANCELLING,
)


class Held:
    """A server whose engine stops where the test says; each test is a tenant with a small source and a destination."""

    def __init__(self, channel: grpc.aio.Channel, engine: GatedEngine, data_dir: Path) -> None:
        self._channel, self.engine, self.data_dir = channel, engine, data_dir
        self.caller = Caller(channel, "nobody")
        self.source = self.destination = ""

    async def fill(self) -> None:
        self.caller = Caller(self._channel, f"org-{secrets.token_hex(6)}")
        self.source = await self.caller.dataset("record", {"id": "CRM"})
        self.destination = await self.caller.dataset("union")
        await self.caller.upload(self.source, "rows", [{"id": str(number)} for number in range(10)])

    async def create(self) -> int:
        return (await self.caller.job(self.destination)).id

    async def get(self, job_id: int) -> job_pb2.ExportJob:
        request = es.GetJobRequest(job_id=job_id)
        return (await self.caller.exports.GetJob(request, metadata=self.caller.metadata)).job

    async def cancel(self, job_id: int, reason: str = "") -> job_pb2.ExportJob:
        request = es.CancelJobRequest(job_id=job_id, reason=reason)
        return (await self.caller.exports.CancelJob(request, metadata=self.caller.metadata)).job

    async def batch(self, job: job_pb2.ExportJob) -> batch_pb2.Batch:
        request = ds.GetBatchRequest(batch_id=job.batch_id)
        return (await self.caller.datasets.GetBatch(request, metadata=self.caller.metadata)).batch

    async def listed(self) -> list[str]:
        request = ds.ListBatchesRequest(dataset_id=self.destination)
        return [
            batch.id
            for batch in (
                await self.caller.datasets.ListBatches(request, metadata=self.caller.metadata)
            ).batches
        ]

    def files_on_disk(self) -> list[str]:
        return [str(path) for path in (self.data_dir / "lake" / self.destination).rglob("*.parquet")]

    async def until_swept(self, job: job_pb2.ExportJob) -> None:
        """Wait until the worker has removed what the job left, as it does right after its end."""
        while self.files_on_disk():
            await self.get(job.id)


async def _nothing() -> None:
    pass


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Held]:
    data_dir = tmp_path_factory.mktemp("held")
    real = real_engine()
    await real.start()
    engine = GatedEngine(real)
    application = Application(load(settings_for(data_dir), {}), engine)
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        yield Held(channel, engine, data_dir)
    await application.stop()
    await real.close()


@pytest_asyncio.fixture(loop_scope="session")
async def held(server: Held) -> AsyncIterator[Held]:
    await server.fill()
    yield server
    server.engine.before_run = server.engine.after_run = _nothing


async def test_a_job_says_what_it_did_and_its_phases_add_up(held: Held) -> None:
    job = await held.caller.export(held.destination)

    assert (job.metrics.profiles_read, job.metrics.profiles_exported) == (10, 10)
    assert job.metrics.profiles_exported_by_namespace == {"CRM": 10}
    assert job.phases[0].start_time == job.create_time
    assert job.phases[-1].end_time == job.end_time
    spent = sum((phase.time.ToTimedelta() for phase in job.metrics.phases), timedelta())
    assert spent == job.metrics.total_time.ToTimedelta()
    assert spent == job.end_time.ToDatetime() - job.create_time.ToDatetime()
    names = [job_pb2.JobPhase.Name(phase.phase).removeprefix("JOB_PHASE_") for phase in job.phases]
    assert names == ["QUEUE", "PLAN", "RESOLVE", "RUN", "COMMIT"]
    assert await held.listed() == [job.batch_id]


async def test_a_phase_says_what_it_pinned_moved_or_wrote_and_the_most_memory_it_took(caller: Caller) -> None:
    # given a person of two sources, of which one row has to move to the other
    crm = await caller.dataset("record", {"crmId": "CRM", "email": "Email"})
    shop = await caller.dataset("record", {"email": "Email"})
    await caller.upload(crm, "crm", [{"crmId": "1", "email": "a@x.org"}, {"crmId": "2"}])
    await caller.upload(shop, "shop", [{"email": "a@x.org"}])
    read = [file for batch in ("crm", "shop") for file in await caller.files(batch)]

    policy = await caller.policy(IDENTITY_GRAPH_PDG)

    job = await caller.export(await caller.dataset("union"), policy=policy)

    written = await caller.files(job.batch_id)
    of = {
        job_pb2.JobPhase.Name(phase.phase).removeprefix("JOB_PHASE_"): phase for phase in job.metrics.phases
    }
    assert (of["PLAN"].rows, of["PLAN"].bytes, of["PLAN"].files) == (3, sum(file.bytes for file in read), 2)
    assert (of["RESOLVE"].rows, of["RESOLVE"].bytes, of["RESOLVE"].files) == (1, 0, 0)
    for name in ("RUN", "COMMIT"):
        assert (of[name].rows, of[name].files) == (2, len(written))
        assert of[name].bytes == sum(file.bytes for file in written)
    assert of["RESOLVE"].peak_memory_bytes > 10**7
    assert of["RUN"].peak_memory_bytes == job.metrics.peak_memory_bytes > 10**7
    assert {of[name].peak_memory_bytes for name in ("QUEUE", "PLAN", "COMMIT")} == {0}


async def test_a_repeated_create_is_the_same_job(held: Held) -> None:
    first = await held.caller.job(held.destination, request_id="same")
    request = es.CreateJobRequest(spec=first.spec, request_id="same")
    request.spec.Clear()
    request.spec.destination.dataset_id = held.destination

    again = await held.caller.exports.CreateJob(request, metadata=held.caller.metadata)

    assert again.replayed
    assert again.job.id == first.id
    await held.caller.finished(first.id)


async def test_a_request_id_with_other_content_is_refused(held: Held) -> None:
    first = await held.caller.job(held.destination, request_id="taken")

    refusal = await refusal_of(held.caller.job(held.destination, request_id="taken", fields=["identityMap"]))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    await held.caller.finished(first.id)


async def test_a_new_job_is_cancelled_at_once(held: Held) -> None:
    gate = held.engine.before_run = Gate()
    running = await held.create()
    await gate.reached.wait()
    waiting = await held.create()

    job = await held.cancel(waiting, "changed my mind")

    assert job.state == CANCELLED
    assert job.cancellation.reason == "changed my mind"
    assert job.cancellation.requested_by
    assert (await held.batch(job)).state == batch_pb2.BATCH_STATE_ABORTED
    gate.passed.set()
    assert (await held.caller.finished(running)).state == SUCCEEDED


async def test_a_tenants_job_runs_beside_anothers_and_its_own_wait(held: Held) -> None:
    gate = held.engine.before_run = Gate()
    first, second = await held.create(), await held.create()
    await gate.reached.wait()
    held.engine.before_run = _nothing
    crowd = held.caller

    await held.fill()
    ended = await held.caller.export(held.destination)

    assert ended.state == SUCCEEDED
    held.caller = crowd
    assert [(await held.get(job)).state for job in (first, second)] == [PROCESSING, NEW]
    gate.passed.set()
    assert (await crowd.finished(second)).state == SUCCEEDED


async def test_a_running_job_is_cancelled_and_nothing_of_it_is_left(held: Held) -> None:
    gate = held.engine.after_run = Gate()
    job_id = await held.create()
    await gate.reached.wait()
    assert held.files_on_disk()

    asked = await held.cancel(job_id)
    ended = await held.caller.finished(job_id)

    assert asked.state == CANCELLING
    assert ended.state == CANCELLED
    assert [phase.phase for phase in ended.phases][-1] == job_pb2.JOB_PHASE_CANCEL
    assert await held.listed() == []
    await held.until_swept(ended)


async def test_a_cancelled_job_leaves_no_batch_of_any_segment(held: Held) -> None:
    members = {"ups": {"gold": {"status": "realized"}, "vip": {"status": "realized"}}}
    await held.caller.upload(held.source, "members", [{"id": "1", "segmentMembership": members}])
    segments = [job_pb2.SegmentFilter(segment_id=segment) for segment in ("gold", "vip")]
    gate = held.engine.after_run = Gate()
    job = await held.caller.job(
        held.destination,
        policy="timestampOrdered-none-mp",
        filter=job_pb2.ExportFilter(segments=segments),
        segment_per_batch=True,
    )
    await gate.reached.wait()
    assert len(held.files_on_disk()) == 2

    await held.cancel(job.id)
    ended = await held.caller.finished(job.id)

    assert ended.state == CANCELLED
    assert await held.listed() == []
    batches = [await held.caller.batch(one.batch_id) for one in ended.batches]
    assert [batch.state for batch in batches] == [batch_pb2.BATCH_STATE_ABORTED] * 2
    await held.until_swept(ended)


async def test_cancelling_again_while_it_cancels_and_after_changes_nothing(held: Held) -> None:
    letting_go = Gate()

    async def hold_on() -> None:
        try:
            await Gate()()
        finally:
            await letting_go()

    held.engine.before_run = hold_on
    job_id = await held.create()
    while (await held.get(job_id)).progress.phase != job_pb2.JOB_PHASE_RUN:
        pass

    first = await held.cancel(job_id)
    await letting_go.reached.wait()
    second = await held.cancel(job_id)
    letting_go.passed.set()
    ended = await held.caller.finished(job_id)
    third = await held.cancel(job_id)

    assert (first.state, second.state) == (CANCELLING, CANCELLING)
    assert second.revision == first.revision
    assert ended.state == third.state == CANCELLED
    assert ended.revision == third.revision == first.revision + 1


async def test_cancelling_a_finished_job_is_refused(held: Held) -> None:
    job = await held.caller.export(held.destination)

    refusal = await refusal_of(held.cancel(job.id))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_FINISHED")
    assert (await held.get(job.id)).state == SUCCEEDED


async def test_a_cancel_that_comes_before_the_commit_wins(held: Held) -> None:
    job_id = 0

    async def cancel_at_the_last_moment() -> None:
        await held.cancel(job_id)

    gate = held.engine.before_run = Gate()
    held.engine.after_run = cancel_at_the_last_moment
    job_id = await held.create()
    await gate.reached.wait()
    gate.passed.set()

    ended = await held.caller.finished(job_id)

    assert ended.state == CANCELLED
    assert (await held.batch(ended)).state == batch_pb2.BATCH_STATE_ABORTED
    assert await held.listed() == []


async def test_a_killed_engine_ends_the_attempt_and_not_the_server(held: Held) -> None:
    killed = list[int]()

    async def kill_once() -> None:
        if not killed:
            killed.extend(held.engine.engine.children)
            for process in killed:
                os.kill(process, signal.SIGKILL)

    held.engine.before_run = kill_once
    job_id = await held.create()

    ended = await held.caller.finished(job_id)

    assert killed
    assert ended.state == SUCCEEDED
    assert ended.attempt == 2
    assert [(error.code, error.attempt, error.retryable) for error in ended.errors] == [
        ("ENGINE_CRASHED", 1, True)
    ]
    assert len(await held.caller.rows(ended.batch_id)) == 10


async def test_an_engine_that_died_while_it_was_idle_costs_no_attempt(held: Held) -> None:
    await held.caller.export(held.destination)
    for process in held.engine.engine.children:
        os.kill(process, signal.SIGKILL)
        await asyncio.to_thread(until_gone, process)

    ended = await held.caller.export(held.destination)

    assert (ended.attempt, list(ended.errors)) == (1, [])


def until_gone(process: int) -> None:
    while Path(f"/proc/{process}").exists():
        pass


@pytest.mark.slow
async def test_an_engine_that_dies_at_every_attempt_ends_the_job_failed(held: Held) -> None:
    async def kill() -> None:
        for process in held.engine.engine.children:
            os.kill(process, signal.SIGKILL)

    held.engine.before_run = kill
    job_id = await held.create()

    ended = await held.caller.finished(job_id)

    assert ended.state == FAILED
    assert [error.attempt for error in ended.errors] == [1, 2, 3]
    assert (await held.batch(ended)).state == batch_pb2.BATCH_STATE_FAILED
    assert await held.listed() == []
    await held.until_swept(ended)


async def test_a_source_that_cannot_be_read_fails_the_job_with_a_reason(held: Held) -> None:
    for path in (held.data_dir / "lake" / held.source).rglob("*.parquet"):
        path.write_bytes(b"PAR1, or so it says")

    ended = await held.caller.finished(await held.create())

    assert ended.state == FAILED
    [error] = ended.errors
    assert (error.code, error.component, error.retryable) == ("SOURCE_UNREADABLE", "engine", False)
    assert f"/{held.source}/" in error.message
    assert await held.listed() == []


async def test_a_fault_that_nobody_foresaw_fails_the_job_without_its_text(held: Held) -> None:
    async def stumble() -> None:
        message = "a secret of ours"
        raise RuntimeError(message)

    held.engine.before_run = stumble

    ended = await held.caller.finished(await held.create())

    assert ended.state == FAILED
    [error] = ended.errors
    assert (error.code, error.component, error.retryable) == ("INTERNAL", "run", False)
    assert "secret" not in error.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refusal", "code", "way_out"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL", "Free some of it"),
        (OSError(errno.EFBIG, "File too large"), "DISK_FULL", "Raise the limit of files' sizes"),
        (OSError(errno.EROFS, "Read-only file system"), "LAKE_FAILED", "Make it writable"),
        (OSError(errno.EINVAL, "Invalid"), "LAKE_FAILED", "See to the disk, and to who may write there"),
    ],
    ids=lambda value: value.strerror if isinstance(value, OSError) else "",
)
async def test_a_lake_that_refuses_once_is_tried_again(
    held: Held, refusal: OSError, code: str, way_out: str
) -> None:
    refusals = [refusal]

    async def refuse_once() -> None:
        if refusals:
            raise refusals.pop()

    held.engine.before_run = refuse_once

    ended = await held.caller.finished(await held.create())

    assert (ended.state, ended.attempt) == (SUCCEEDED, 2)
    assert [(error.code, error.message) for error in ended.errors] == [
        (code, f"The lake refused: {refusal.strerror}. {way_out}, then export again.")
    ]


async def test_a_job_with_an_engine_that_hangs_fails_when_its_run_time_is_used_up(held: Held) -> None:
    # given a job whose engine stands still
    hanging = asyncio.Event()
    stopped = list[int]()

    async def hang() -> None:
        stopped.extend(held.engine.engine.children)
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        hanging.set()

    held.engine.before_run = hang
    job = await held.caller.job(held.destination, max_run_time=Duration(seconds=3600))
    await hanging.wait()

    # when its hour has passed
    await asyncio.to_thread(an_hour_passes, held.data_dir, job.id)
    ended = await held.caller.finished(job.id)

    # then it has failed, nothing of it is visible, and its engine does not go on
    assert ended.state == FAILED
    assert [(error.code, error.component, error.retryable) for error in ended.errors] == [
        ("RUN_TIME_EXCEEDED", "runner", False)
    ]
    assert ended.spec.max_run_time.seconds == 3600
    assert await held.listed() == []
    for process in stopped:
        await asyncio.to_thread(until_gone, process)


def an_hour_passes(data_dir: Path, job_id: int) -> None:
    hour = 3_600_000_000
    with closing(sqlite3.connect(data_dir / "store.sqlite")) as store, store:
        store.execute(
            "UPDATE jobs SET create_time = create_time - ?, deadline = deadline - ? WHERE id = ?",
            [hour, hour, job_id],
        )


@pytest.mark.parametrize(
    ("spec", "code", "reason"),
    [
        ({"fields": ["persn.name"]}, grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_FIELD"),
        ({"engine": "abacus"}, grpc.StatusCode.INVALID_ARGUMENT, "ENGINE_UNKNOWN"),
        ({"schema_name": "_xdm.context.account"}, grpc.StatusCode.INVALID_ARGUMENT, "SCHEMA_NAME_MISMATCH"),
        ({"policy": "nowhere"}, grpc.StatusCode.NOT_FOUND, "MERGE_POLICY_NOT_FOUND"),
        ({"evaluate_segments": True}, grpc.StatusCode.UNIMPLEMENTED, "NOT_BUILT"),
    ],
)
async def test_a_request_that_cannot_be_is_refused(
    held: Held, spec: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    refusal = await refusal_of(held.caller.job(held.destination, **spec))

    assert (refusal.code, refusal.reason) == (code, reason)


async def test_a_destination_has_to_be_a_union_dataset(held: Held) -> None:
    refusal = await refusal_of(held.caller.job(held.source))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DESTINATION_NOT_UNION")
    assert refusal.fields == ["spec.destination.dataset_id"]


async def test_jobs_are_listed_newest_first_page_by_page(held: Held) -> None:
    made = [(await held.caller.export(held.destination)).id for _ in range(3)]

    first = await held.caller.exports.ListJobs(es.ListJobsRequest(page_size=2), metadata=held.caller.metadata)
    request = es.ListJobsRequest(page_size=1, page_token=first.next_page_token)
    second = await held.caller.exports.ListJobs(request, metadata=held.caller.metadata)

    assert [job.id for job in (*first.jobs, *second.jobs)] == made[::-1]


async def test_nothing_but_whole_batches_is_ever_listed(held: Held) -> None:
    gate = held.engine.after_run = Gate()
    job_id = await held.create()
    await gate.reached.wait()
    job = await held.get(job_id)

    refusal = await refusal_of(held.caller.files(job.batch_id))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BATCH_NOT_SUCCEEDED")
    assert await held.listed() == []
    gate.passed.set()
    ended = await held.caller.finished(job_id)
    assert await held.listed() == [ended.batch_id]


async def test_a_dataset_that_unfinished_jobs_use_is_not_deleted(held: Held) -> None:
    # given a job that has pinned its source and stands still, and a dataset made after that
    gate = held.engine.before_run = Gate()
    job_id = await held.create()
    await gate.reached.wait()
    later = await held.caller.dataset("record", {"id": "CRM"})

    # when they are deleted
    refusals = [await refusal_of(held.caller.delete(one)) for one in (held.source, held.destination)]
    await held.caller.delete(later)

    # then those that the job uses stay, and it finishes
    gate.passed.set()
    finished = await held.caller.finished(job_id)
    for refusal in refusals:
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DATASET_IN_USE")
        assert refusal.subjects == [f"jobs/{job_id}"]
    assert finished.state == SUCCEEDED
    await held.caller.delete(held.source)


async def test_a_job_finishes_with_a_batch_that_was_taken_back_after_it_was_pinned(held: Held) -> None:
    gate = held.engine.before_run = Gate()
    job_id = await held.create()
    await gate.reached.wait()

    await held.caller.revert("rows")
    gate.passed.set()
    finished = await held.caller.finished(job_id)

    assert finished.metrics.profiles_exported == 10
    assert len(await held.caller.rows(finished.batch_id)) == 10
    again = await held.caller.export(held.destination)
    assert again.metrics.profiles_exported == 0
