"""Calls of all methods with bytes that no client sends: the server refuses them by name, and holds no more afterwards.

Here it is short. `make fuzz` runs the long form, `CALLS` on each database; `SEED` makes the same calls again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2
from tests.hostile.attacked import Attacked, Size, attacked
from tests.hostile.fuzz import Call, Calls, texts_of
from tests.hostile.methods import BESIDE, CONTRACT, call, methods
from tests.hostile.outcomes import faults_of
from tests.hostile.recording import record
from tests.service.harness import Caller

OURS = methods(*CONTRACT)
LONG = "CALLS" in os.environ
CALLS = int(os.environ.get("CALLS", "250"))
AT_ONCE = 8
WATCHED_SECONDS, PATIENCE_SECONDS = 0.2, 60
MIB = 1024 * 1024
ALLOWANCE = Size(bytes=(96 if LONG else 64) * MIB, files=12, threads=8, children=2, tasks=6)
"""What a server may hold more after all calls than after the first quarter of them: caches that have a limit."""


UNFINISHED = [job_pb2.JOB_STATE_NEW, job_pb2.JOB_STATE_PROCESSING, job_pb2.JOB_STATE_CANCELLING]


@pytest_asyncio.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Attacked]:
    if request.param == "sqlite":
        async with attacked(tmp_path) as opened:
            yield opened
    else:
        async with (
            request.getfixturevalue("postgres").database(with_tables=True) as url,
            attacked(tmp_path, url) as opened,
        ):
            yield opened


@dataclass
class Outcomes:
    """How calls have ended, and what was wrong with it."""

    codes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, of: Call, what: str) -> None:
        shown = [message[:300] for message in of.messages[:5]]
        self.faults.append(f"{of.method.name}, {of.kind}: {what}\n    sent {shown}")


@pytest.mark.slow
@pytest.mark.timeout(86_400 if LONG else 300)
async def test_no_bytes_that_a_method_is_sent_harm_the_server_or_tell_of_it(
    server: Attacked, seed: str, pytestconfig: pytest.Config
) -> None:
    org = secrets.token_hex(6)
    async with server.channel() as channel:
        recording = await record(channel, org)
        named = {method.path for method in methods(*CONTRACT, *BESIDE)}
        assert set(recording.calls) >= named, "a method was recorded no call of"
        caller = Caller(channel, org)
        calls = Calls(Random(seed), recording, caller.metadata)
        outcomes = Outcomes()
        secret = (str(server.data_dir.parent), str(pytestconfig.rootpath))

        await send(channel, [calls.next() for _ in range(CALLS // 4)], outcomes, secret)
        await settled(caller)
        before = await server.size()
        for _ in range(3):
            await send(channel, [calls.next() for _ in range(CALLS // 4)], outcomes, secret)
        await settled(caller)
        after = await server.size()
        await record(channel, secrets.token_hex(6))  # it does good work still

    print(f"{dict(outcomes.codes.most_common())}, {before} then {after}")  # noqa: T201 - the figures
    report = "\n".join(islice(outcomes.faults, 20))
    assert not outcomes.faults, f"{len(outcomes.faults)} faults, such as\n{report}\n{server.errors()[:20]}"
    assert server.errors() == []
    for what, more in vars(ALLOWANCE).items():
        assert getattr(after, what) <= getattr(before, what) + more, (what, before, after)


async def send(
    channel: grpc.aio.Channel, calls: list[Call], outcomes: Outcomes, secret: tuple[str, ...]
) -> None:
    """Make all of these calls, some at a time."""
    waiting = iter(calls)

    async def one_after_the_other() -> None:
        for one in waiting:
            await attempt(channel, one, outcomes, secret)

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))


async def attempt(channel: grpc.aio.Channel, one: Call, outcomes: Outcomes, secret: tuple[str, ...]) -> None:
    watched = one.method.gives_stream and not one.method.takes_stream
    patience = WATCHED_SECONDS if watched else PATIENCE_SECONDS
    try:
        await call(channel, one.method, one.messages, one.metadata, seconds=one.timeout or patience)
    except grpc.aio.AioRpcError as error:
        outcomes.codes[error.code().name] += 1
        if one.timeout and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return
        if error.code() in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}:
            outcomes.fault(one, f"{error.code().name}: {error.details()}")
        for what in faults_of(error, texts_of(one), secret, told_why=one.method in OURS):
            outcomes.fault(one, what)
    except asyncio.CancelledError as error:  # as grpc reports a call that it has cancelled itself
        outcomes.codes["CANCELLED"] += 1
        if not one.method.takes_stream:  # which its client does where it still sends to a call that has ended
            outcomes.fault(one, f"CANCELLED {error}")
    else:
        outcomes.codes["OK"] += 1


async def settled(caller: Caller) -> None:
    """Wait for the jobs that came of it."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        feed = caller.exports.WatchJobs(es.WatchJobsRequest(states=UNFINISHED), metadata=caller.metadata)
        unfinished: set[int] = set()
        listed = False
        async for message in feed:
            listed = listed or message.list_complete
            for change in message.changes:
                ended = change.HasField("transition") and change.transition.to_state not in UNFINISHED
                (unfinished.discard if ended or change.removed else unfinished.add)(change.job_id)
            if listed and not unfinished:
                break
        feed.cancel()
