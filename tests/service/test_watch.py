from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2
from tests.service.conftest import settings_for
from tests.service.engines import Gate, GatedEngine, real_engine
from tests.service.harness import Caller, refusal_of


@pytest.fixture
async def destination(caller: Caller) -> str:
    source = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(source, "rows", [{"id": str(number)} for number in range(10)])
    return await caller.dataset("union")


async def told(stream: AsyncIterator[es.WatchJobResponse]) -> Sequence[es.WatchJobResponse]:
    return [message async for message in stream]


def revisions(messages: Sequence[es.WatchJobResponse]) -> list[int]:
    return [transition.revision for message in messages for transition in message.transitions]


def states(messages: Sequence[es.WatchJobResponse]) -> list[str]:
    return [
        job_pb2.JobState.Name(transition.to_state).removeprefix("JOB_STATE_")
        for message in messages
        for transition in message.transitions
    ]


async def test_a_watch_tells_a_snapshot_and_then_every_transition(caller: Caller, destination: str) -> None:
    job = await caller.job(destination)

    messages = await told(caller.watch(job.id))

    assert messages[0].job.id == job.id
    assert not messages[0].transitions
    assert revisions(messages) == list(range(messages[0].revision + 1, 4))
    assert messages[-1].job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert messages[-1].revision == messages[-1].job.revision == 3


async def test_a_watch_from_zero_tells_every_transition_with_its_metrics(
    caller: Caller, destination: str
) -> None:
    job = await caller.export(destination)

    messages = await told(caller.watch(job.id, 0))

    transitions = [transition for message in messages for transition in message.transitions]
    assert states(messages) == ["NEW", "PROCESSING", "SUCCEEDED"]
    assert transitions[0].from_state == job_pb2.JOB_STATE_UNSPECIFIED
    assert transitions[-1].metrics.profiles_exported == 10
    assert transitions[-1].metrics == job.metrics
    assert [transition.time.ToDatetime() for transition in transitions] == sorted(
        transition.time.ToDatetime() for transition in transitions
    )


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_a_watch_resumes_exactly_after_any_revision(
    caller: Caller, destination: str, after: int
) -> None:
    job = await caller.export(destination)

    messages = await told(caller.watch(job.id, after))

    assert revisions(messages) == list(range(after + 1, 4))
    assert messages[-1].job == job


async def test_a_watch_resumed_at_the_end_tells_the_job_and_no_transition(
    caller: Caller, destination: str
) -> None:
    job = await caller.export(destination)

    [message] = await told(caller.watch(job.id, job.revision))

    assert message.job == job
    assert not message.transitions


async def test_a_watch_of_a_finished_job_is_its_snapshot(caller: Caller, destination: str) -> None:
    job = await caller.export(destination)

    [message] = await told(caller.watch(job.id))

    assert message.job == job


async def test_a_revision_that_the_job_has_not_reached_is_out_of_range(
    caller: Caller, destination: str
) -> None:
    job = await caller.export(destination)

    refusal = await refusal_of(told(caller.watch(job.id, job.revision + 1)))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_OUT_OF_RANGE")


@pytest.mark.parametrize("field", ["heartbeat_interval", "min_progress_interval"])
async def test_an_interval_out_of_bounds_is_refused(caller: Caller, destination: str, field: str) -> None:
    job = await caller.export(destination)

    options: dict[str, Any] = {field: Duration(seconds=61)}

    refusal = await refusal_of(told(caller.watch(job.id, **options)))

    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


@pytest.mark.slow
async def test_a_held_job_beats_and_a_restart_ends_the_watch_with_advice_and_loses_nothing(
    tmp_path: Path,
) -> None:
    real = real_engine()
    await real.start()
    engine = GatedEngine(real)
    gate = engine.before_run = Gate()
    settings = load(settings_for(tmp_path), {})
    first = Application(settings, engine)
    await first.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{first.port}") as channel:
        caller = Caller(channel, "restart")
        source = await caller.dataset("record", {"id": "CRM"})
        await caller.upload(source, "rows", [{"id": "1"}])
        job = await caller.job(await caller.dataset("union"))
        await gate.reached.wait()
        stream = caller.watch(job.id, 0, heartbeat_interval=Duration(seconds=1))
        seen = [await anext(stream)]
        while seen[-1].transitions or seen[-1].HasField("progress") or seen[-1].HasField("job"):
            seen.append(await anext(stream))

        await first.stop()
        ended = await refusal_of(append_all(stream, seen))

    assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    assert ended.retry_seconds is not None
    assert any(message.HasField("progress") for message in seen)

    engine.before_run = _go_on
    second = Application(settings, engine)
    await second.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{second.port}") as channel:
        seen += await told(Caller(channel, "restart").watch(job.id, seen[-1].revision))
    await second.stop()
    await real.close()
    assert revisions(seen) == list(range(1, 6))
    assert states(seen) == ["NEW", "PROCESSING", "NEW", "PROCESSING", "SUCCEEDED"]
    assert seen[-1].job.metrics.profiles_exported == 1


async def append_all(stream: AsyncIterator[es.WatchJobResponse], seen: list[es.WatchJobResponse]) -> None:
    async for message in stream:
        seen.append(message)  # noqa: PERF401 - what came before a refusal counts


async def _go_on() -> None:
    pass
