"""Whatever one tenant sends, another one's small calls are answered, and its job goes on.

Here it is short: what costs the most. `make probe` runs the long form, all cases of all methods.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import pytest

from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2
from tests.hostile.attacked import Attacked, Lag, attacked
from tests.hostile.limits import Case, at_the_limits, of_four_megabytes
from tests.hostile.methods import CONTRACT, Method, call, methods
from tests.hostile.recording import Recording, record
from tests.hostile.wide import Much, Wide, awkward, prepare
from tests.service.harness import Caller
from tests.watch.processes import Running, running

MOST_LAG, MOST_WAIT = 100, 250
"""In milliseconds: on the loop, and in all."""
MOST_UPLOAD_WAIT, TIMES_ALONE = 2_000, 5
TRIES = 3
LONG = "PROBE" in os.environ
JOB_SECONDS = 10 if LONG else 2
MUCH = Much() if LONG else Much(datasets=10, batches=10, parts=2, jobs=1, bad_rows=50)
PATIENCE_SECONDS = 30
SLOWEST = 10
HEAVIEST = {
    "CreateDataset": {"identity_fields of unknown names", "declared_fields of deep names"},
    "ListDatasets": {"all"},
    "UploadBatch": {"a list of 20 million", "100,000 namespaces"},
    "CreateSchema": {"the last key over and over", "500 other documents"},
    "GetUnionSchema": {"of records"},
    "GetProfile": {"fields of unknown names"},
    "EstimateJob": {"spec.fields of unknown names", "spec.fields of deep names"},
    "CreateJob": {"spec.fields of unknown names"},
    "WatchJobs": {"all from the first on"},
}
"""Those of the short form, by method."""


def chosen(method: str, case: str) -> bool:
    return LONG or case in HEAVIEST.get(method, ())


@dataclass(frozen=True)
class Limits:
    """What another tenant's calls may take, in milliseconds, on a machine that is as busy as this one is just now."""

    wait: int
    upload: int

    def or_more(self, other: Limits) -> Limits:
        return Limits(max(self.wait, other.wait), max(self.upload, other.upload))


@dataclass
class Judged:
    """The best of some tries of a case: how late the loop was by its own doing, and how long probes took."""

    case: Case
    lags: list[Lag] = field(default_factory=list)
    probes: list[dict[str, int]] = field(default_factory=list)

    @property
    def lag(self) -> int:
        """How late the loop was while its process had a processor: what it waits for one is not its own doing."""
        return min(min(lag.late, lag.busy) for lag in self.lags)

    @property
    def wait(self) -> int:
        return min(
            max(took for method, took in probe.items() if method != "UploadBatch") for probe in self.probes
        )

    @property
    def upload(self) -> int:
        return min(probe["UploadBatch"] for probe in self.probes)

    def is_good(self, limits: Limits) -> bool:
        return self.lag <= MOST_LAG and self.wait <= limits.wait and self.upload <= limits.upload

    def __str__(self) -> str:
        tries = f", in {len(self.lags)} tries" if len(self.lags) > 1 else ""
        return (
            f"{self.case.method.name}, {self.case.name}: "
            f"lag {self.lag} ms, probe {self.wait} ms, upload {self.upload} ms{tries}"
        )


class Prober:
    """Another tenant, who makes small calls all the time."""

    def __init__(self, process: Running) -> None:
        self._process = process

    async def slowest(self) -> dict[str, int]:
        """Return what its calls took at the most since this was asked last, by method, in milliseconds."""
        await self._process.tell("slowest?")
        told: dict[str, int] = json.loads(await self._process.said())
        return told

    async def alone(self) -> Limits:
        """Return what its calls may take, by what they take while nobody else calls."""
        await self.slowest()
        rounds = [await self.slowest() for _ in range(5)]
        wait = max(took for told in rounds for method, took in told.items() if method != "UploadBatch")
        upload = max(told["UploadBatch"] for told in rounds)
        return Limits(max(MOST_WAIT, 2 * wait), max(MOST_UPLOAD_WAIT, TIMES_ALONE * upload))


@asynccontextmanager
async def probing(server: Attacked, neighbour: Caller, job_id: int) -> AsyncIterator[Prober]:
    dataset = await neighbour.dataset("record", {"crmId": "CRM"})
    org = neighbour.metadata[0][1]
    async with running("tests.hostile.prober", server.address, org, dataset, str(job_id)) as process:
        yield Prober(process)


async def held_job(server: Attacked, neighbour: Caller) -> int:
    """Create a job that runs until the server is told to go on."""
    source = await neighbour.dataset("record", {"crmId": "CRM"})
    await neighbour.upload(source, "one", [{"crmId": "C1"}])
    await server.hold()
    job = await neighbour.job(await neighbour.dataset("union"))
    async for message in neighbour.watch(job.id, 0):
        if any(move.to_state == job_pb2.JOB_STATE_PROCESSING for move in message.transitions):
            break
    return job.id


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.timeout(3_600 if LONG else 600)
async def test_no_message_of_any_method_keeps_another_tenant_waiting(tmp_path: Path) -> None:
    async with attacked(tmp_path) as server, server.channel() as channel:
        neighbour, org = Caller(channel, "neighbour"), "attacker"
        recording = await record(channel, org)
        attacker = Caller(channel, org)
        job_id = await held_job(server, neighbour)
        cases = made(methods(*CONTRACT), recording, await prepare(attacker, MUCH))

        async with probing(server, neighbour, job_id) as prober:
            limits = await prober.alone()
            judged = [Judged(case) for case in cases]
            for one in judged:
                await attempt(server, channel, attacker, prober, one)
            for _ in range(TRIES - 1):
                if again := [one for one in judged if not one.is_good(limits)]:
                    limits = limits.or_more(await prober.alone())
                for one in again:
                    await attempt(server, channel, attacker, prober, one)

        await server.go_on()
        job = await neighbour.finished(job_id)

    show(judged, limits)
    assert (job.state, job.attempt) == (job_pb2.JOB_STATE_SUCCEEDED, 1)
    assert [str(case) for case in judged if not case.is_good(limits)] == []
    assert server.errors() == []


def made(ours: list[Method], recording: Recording, wide: Wide) -> list[Case]:
    """Make the cases; there has to be one of each method, in the short form at least to choose from."""
    cases = list(awkward(wide, {method.name: method for method in ours}, chosen))
    for method in ours:
        good = recording.calls[method.path]
        assert good, f"no call of {method.name} was recorded, from which cases are made"
        cases += at_the_limits(method, good, chosen)
        if LONG:
            cases += of_four_megabytes(method, good)
    if LONG:
        assert {case.method.path for case in cases} == {method.path for method in ours}
    else:
        named = {(method, name) for method, names in HEAVIEST.items() for name in names}
        assert {(case.method.name, case.name) for case in cases} == named
    return cases


async def attempt(
    server: Attacked, channel: grpc.aio.Channel, attacker: Caller, prober: Prober, judged: Judged
) -> None:
    """Make the call of a case, and write down how late the loop was and how long probes took meanwhile."""
    case = judged.case
    watched = case.method.gives_stream
    with suppress(grpc.aio.AioRpcError):
        answers = await call(
            channel,
            case.method,
            case.fresh(),
            attacker.metadata,
            seconds=1 if watched else PATIENCE_SECONDS,
            most_answers=200,
        )
        if case.method.name == "CreateJob":
            await try_job(attacker, es.CreateJobResponse.FromString(answers[0]).job.id)
    judged.probes.append(await prober.slowest())
    judged.lags.append(await server.lag())


async def try_job(attacker: Caller, job_id: int) -> None:
    """Let a job run for a while, since what it costs comes with its attempt, and end it if it does not."""
    try:
        async with asyncio.timeout(JOB_SECONDS):
            await attacker.finished(job_id)
    except TimeoutError:
        await attacker.exports.CancelJob(es.CancelJobRequest(job_id=job_id), metadata=attacker.metadata)
        await attacker.finished(job_id)


def show(judged: list[Judged], limits: Limits) -> None:
    """Print the slowest, by lag and by probe."""
    print(f"{len(judged)} cases; {limits}")  # noqa: T201 - the figures
    for what in ("lag", "wait", "upload"):
        slowest = sorted(judged, key=lambda case: -int(getattr(case, what)))[:SLOWEST]
        print(f"the slowest by {what}:", *slowest, sep="\n  ")  # noqa: T201 - the figures
