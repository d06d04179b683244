"""What has ended says why, in a sentence, without a look at anything else."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from profile_export.v1 import batch_pb2, job_pb2
from tests.service.harness import Caller, refusal_of


async def test_a_job_that_failed_says_its_error_and_so_does_its_batch(caller: Caller) -> None:
    union = await caller.dataset("union")
    job = await caller.finished((await caller.job(union, max_run_time=Duration(nanos=1_000))).id)

    batch = await caller.batch(job.batch_id)

    assert job.state == job_pb2.JOB_STATE_FAILED
    assert job.state_reason.startswith("RUN_TIME_EXCEEDED: ")
    assert job.state_reason == f"{job.errors[-1].code}: {job.errors[-1].message}"
    assert batch.state == batch_pb2.BATCH_STATE_FAILED
    assert batch.state_reason == f"The export job {job.id} is FAILED. {job.state_reason}"


async def test_a_job_that_succeeded_has_nothing_to_say(caller: Caller) -> None:
    job = await caller.export(await caller.dataset("union"))

    assert job.state_reason == ""
    assert (await caller.batch(job.batch_id)).state_reason == ""


async def test_an_uploaded_batch_says_why_it_was_refused_given_up_or_taken_back(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"})
    await refusal_of(caller.upload(source, "refused", [{"id": "1"}, {"name": "nobody"}]))
    await caller.create_batch(source, "aborted")
    await caller.abort("aborted", "wrong file")
    await caller.upload(source, "reverted", [{"id": "1"}])
    await caller.revert("reverted", "wrong day")

    refused = await caller.batch("refused")

    assert refused.state == batch_pb2.BATCH_STATE_FAILED
    assert refused.state_reason == f"{refused.errors[0].code}: {refused.errors[0].message}"
    assert refused.state_reason.startswith("PRIMARY_IDENTITY_MISSING: ")
    assert [(await caller.batch(one)).state_reason for one in ("aborted", "reverted")] == [
        "wrong file",
        "wrong day",
    ]
    # and uploaded again it has none
    await caller.upload(source, "refused", [{"id": "1"}])
    assert (await caller.batch("refused")).state_reason == ""
