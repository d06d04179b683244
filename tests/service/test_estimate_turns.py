"""Estimates of one tenant: they keep no other tenant's waiting, end with who asked for them, and end in time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import grpc
import pytest

from profile_export.application import jobs as estimates
from profile_export.v1 import export_service_pb2 as es
from tests.service.engines import Gate
from tests.service.harness import Caller, export_spec, refusal_of
from tests.service.test_cancel import gone
from tests.service.test_disks import PEOPLE, Server, serving


class FirstIsHeld(Gate):
    """Holds up who comes first, and counts who comes."""

    def __init__(self) -> None:
        super().__init__()
        self.came = 0

    async def __call__(self) -> None:
        self.came += 1
        if self.came == 1:
            await super().__call__()


def estimate_of(
    caller: Caller, destination: str
) -> grpc.aio.UnaryUnaryCall[es.EstimateJobRequest, es.EstimateJobResponse]:
    request = es.EstimateJobRequest(spec=export_spec(destination))
    return caller.exports.EstimateJob(request, metadata=caller.metadata)


def left_of_estimates(server: Server) -> list[Path]:
    return list((server.lake / "estimates").iterdir())


@pytest.mark.slow
async def test_who_has_many_estimates_keeps_nobody_elses_waiting(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        # given a tenant of whose estimates one takes long, and others wait
        other = server.stranger
        source, union = await other.dataset("record", {"id": "CRM"}), await other.dataset("union")
        await other.upload(source, "one", [{"id": "7"}])
        held = FirstIsHeld()
        server.engine.before_run = held
        first = estimate_of(server.caller, server.union)
        await held.reached.wait()
        waiting = [estimate_of(server.caller, server.union) for _ in range(4)]

        # when another tenant asks for one
        answer = await estimate_of(other, union)

        # then it is answered while those wait
        assert answer.profiles.value == 1
        assert held.came == 2
        assert not any(call.done() for call in (first, *waiting))
        # and who hangs up lets his next one begin
        first.cancel()
        assert [(await call).profiles.value for call in waiting] == [PEOPLE] * 4
        assert left_of_estimates(server) == []


@pytest.mark.slow
async def test_an_estimate_that_takes_too_long_is_ended_and_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as server:
        # given an engine that is in the middle of something for good
        await estimate_of(server.caller, server.union)
        engines = server.engine.engine.children
        for process in engines:
            os.kill(process, signal.SIGSTOP)
        monkeypatch.setattr(estimates, "MOST_SECONDS", 0.1)

        refusal = await refusal_of(estimate_of(server.caller, server.union))

        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "REQUEST_TOO_EXPENSIVE",
        )
        assert (refusal.metadata["limit"], refusal.retry_seconds) == ("0.1s", None)
        assert "fewer fields, or run the job" in refusal.message
        assert engines
        await gone(engines)
        assert left_of_estimates(server) == []
        monkeypatch.undo()
        assert (await estimate_of(server.caller, server.union)).profiles.value == PEOPLE
