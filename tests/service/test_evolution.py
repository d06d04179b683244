"""Schemas that grow at random: every row comes back as it was sent, and what narrows or changes a type is refused."""

from __future__ import annotations

import secrets
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from profile_export.api.convert import datasets as convert_datasets
from profile_export.domain.schemas.types import dotted_path
from profile_export.v1 import batch_pb2
from tests.service.evolutions import Contradiction, Format, Step, contradictions, evolutions, parquet_of
from tests.service.harness import Caller, json_lines, refusal_of, types_of
from tests.service.stored import as_sent, exported_rows, stored_rows

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
FOUND = {int: {"long", "double"}, bool: {"boolean"}, str: {"string"}, dict: {"object"}, list: {"array"}}
# An example takes a second of a real server: looking for a smaller one that fails too would take minutes.
OF_SECONDS: dict[str, Any] = {
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "phases": [Phase.generate],
}


async def check_evolution(channel: grpc.aio.Channel, steps: list[Step], data: st.DataObject) -> None:
    caller = Caller(channel, f"org-{secrets.token_hex(6)}")
    evolving, beside = [await caller.dataset("record", {"id": "Test"}, name=name) for name in ("a", "b")]
    for step in steps:
        sent = await caller.send(evolving, step.id, step.data(), step.format.value)
        assert sent.batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
        if data.draw(st.integers(0, 3), label="contradicted") == 0:
            await check_refusals(
                caller, evolving, beside, data.draw(st.composite(contradictions)(step.known))
            )

    fields = types_of((await caller.get_dataset(evolving)).fields)
    assert types_of(convert_datasets.union_schema("", steps[-1].known, []).fields).items() <= fields.items()
    assert await caller.visible_batches(evolving) == [step.id for step in steps]
    for step in steps:
        assert await stored_rows(caller, step.id) == [as_sent(row) for row in step.rows]
    job = await caller.export(await caller.dataset("union"))
    rows = sorted(await exported_rows(caller, job.batch_id), key=lambda row: row["id"])
    assert rows == sorted(
        (as_sent(row) for step in steps for row in step.rows), key=lambda row: str(row["id"])
    )


async def check_refusals(caller: Caller, evolving: str, beside: str, wrong: Contradiction) -> None:
    before = [await caller.visible_batches(""), (await caller.get_dataset(evolving)).fields]
    row = {"id": "wrong", **wrong.row}

    # A Parquet file has one type for all of its rows.
    told_as = {
        Format.JSON_LINES: (INVALID, "ROW_REJECTED"),
        Format.PARQUET: (PRECONDITION, "FIELD_TYPE_CONFLICT"),
    }
    for written, told in told_as.items():
        content = json_lines([{"id": "right"}, row]) if written is Format.JSON_LINES else parquet_of([row])
        refusal = await refusal_of(caller.send(evolving, "refused", content, written.value))
        assert (refusal.code, refusal.reason) == told
        assert refusal.metadata["path"] == dotted_path(wrong.path)
        assert f"known as {wrong.known}." in refusal.message
        assert any(f" is {word}" in refusal.message for word in FOUND[type(wrong.value)])
        assert "Send it as that" in refusal.message
        assert (await caller.batch("refused")).state == batch_pb2.BATCH_STATE_FAILED

    refusal = await refusal_of(caller.send(beside, "beside", json_lines([row])))
    assert (refusal.code, refusal.reason) == (PRECONDITION, "FIELD_TYPE_CONFLICT")
    assert dotted_path(wrong.path).startswith(refusal.metadata["path"])
    assert refusal.metadata["type"] != refusal.metadata["other_type"]
    assert refusal.metadata["other_dataset_id"] == evolving
    assert "unifiedProfile" in refusal.message
    assert before == [await caller.visible_batches(""), (await caller.get_dataset(evolving)).fields]


@given(steps=evolutions(), data=st.data())
@settings(max_examples=1, **OF_SECONDS)
async def test_what_ten_batches_taught_comes_back_as_it_was_sent(
    channel: grpc.aio.Channel, steps: list[Step], data: st.DataObject
) -> None:
    await check_evolution(channel, steps, data)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@given(steps=evolutions(), data=st.data())
@settings(max_examples=4, **OF_SECONDS)
async def test_what_ten_batches_taught_comes_back_as_it_was_sent_many_times(
    channel: grpc.aio.Channel, steps: list[Step], data: st.DataObject
) -> None:
    await check_evolution(channel, steps, data)
