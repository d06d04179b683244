"""What an engine promises beside the right rows: files, failures, and that stopping it always works."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from profile_export.domain.catalog.batches import BATCH_ID, PROFILE_ID
from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import (
    HIGHEST_KEY,
    LOWEST_KEY,
    EngineDiedError,
    EngineFailedError,
    EngineProgress,
    ExportPlan,
    KeyRange,
    PinnedFile,
    RangeResult,
    ResolutionFacts,
    Source,
    SourcePart,
)
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import DOUBLE, LONG, TEXT, ArrayType, FieldType, MapType, ObjectType
from profile_export.engines.duckdb.engine import DuckDbEngine
from profile_export.lake.data_files import arrow_type
from tests.builders import Part, at, events, plan_of, read_export, records, row, who
from tests.contract.ingesting import CRM, Uploader

EVERYTHING = KeyRange(0, LOWEST_KEY, HIGHEST_KEY)
PERSON = ObjectType({"name": ObjectType({"first": TEXT, "last": TEXT}), "age": LONG})


# Starting a child costs more than most exports here, so tests share one as long as they do it no harm.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[DuckDbEngine]:
    engine = DuckDbEngine(memory_limit_mb=512, threads=2)
    await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def own_engine() -> AsyncIterator[DuckDbEngine]:
    engine = DuckDbEngine(memory_limit_mb=512, threads=2)
    await engine.start()
    yield engine
    await engine.close()


async def run(
    engine: DuckDbEngine, plan: ExportPlan, lake: Path, ranges: Sequence[KeyRange] = (EVERYTHING,)
) -> tuple[ResolutionFacts, list[RangeResult]]:
    async with engine.attempt(plan, lake, lake / "attempt", lambda _: None) as attempt:
        return await attempt.resolve(), [await attempt.run(key_range) for key_range in ranges]


async def exported(engine: DuckDbEngine, lake: Path, *parts: Part, **options: Any) -> list[dict[str, Any]]:
    plan = plan_of(parts, lake=lake, **options)
    _, (result,) = await run(engine, plan, lake)
    return read_export(lake / "attempt", [file.name for file in result.files], plan.batch_id)


def person(**name: str) -> dict[str, Any]:
    return {"person": {"name": name}}


# --- Rows: one golden case per rule; `test_engine_against_merge` has all the others ---


async def test_leaves_come_from_the_latest_fragment_that_has_them(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    crm = records("crm", {"person": PERSON}, row("crm", "CRMID:1", person(first="Ann", last="Lee")))
    web = records("web", {"person": PERSON}, row("web", "CRMID:1", person(first="Anna"), batch="b2"))

    profiles = await exported(engine, tmp_path, crm, web)

    assert [profile["person"] for profile in profiles] == [{"name": {"first": "Anna", "last": "Lee"}}]


async def test_a_newer_record_of_the_same_dataset_replaces_the_older_one_whole(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    crm = records(
        "crm",
        {"person": PERSON},
        row("crm", "CRMID:1", person(first="Ann", last="Lee")),
        row("crm", "CRMID:1", person(first="Anna"), batch="b2"),
    )

    profiles = await exported(engine, tmp_path, crm)

    assert [profile["person"] for profile in profiles] == [{"name": {"first": "Anna"}}]


async def test_a_newer_record_of_a_dataset_that_upserts_patches_the_older_one(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    crm = records(
        "crm",
        {"person": PERSON},
        row("crm", "CRMID:1", person(first="Ann", last="Lee")),
        row("crm", "CRMID:1", person(first="Anna"), batch="b3"),
        upserts=True,
    )
    web = records("web", {"person": PERSON}, row("web", "CRMID:1", person(last="Leeds"), batch="b2"))

    profiles = await exported(engine, tmp_path, crm, web)

    assert [profile["person"] for profile in profiles] == [{"name": {"first": "Anna", "last": "Lee"}}]


async def test_a_chain_of_identities_is_one_profile_with_all_of_them(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    crm = records(
        "crm",
        {"city": TEXT},
        row("crm", who("CRMID:1", "authenticated"), {"city": "Delft"}, links=["Email:a"]),
    )
    web = events(
        "web", {}, row("web", "ECID:x", {"_id": "1", "timestamp": at(0)}, links=["Email:a"], batch="b2")
    )

    profiles = await exported(engine, tmp_path, crm, web, graph=IdentityGraph.PDG)

    assert profiles == [
        {
            "identityMap": {
                "CRMID": [{"id": "1", "authenticatedState": "authenticated", "primary": True}],
                "ECID": [{"id": "x", "primary": True}],
                "Email": [{"id": "a"}],
            },
            "city": "Delft",
        }
    ]


async def test_maps_merge_per_key_and_arrays_come_whole(engine: DuckDbEngine, tmp_path: Path) -> None:
    fields: dict[str, FieldType] = {"consents": MapType(TEXT), "tags": ArrayType(TEXT)}
    crm = records(
        "crm", fields, row("crm", "CRMID:1", {"consents": {"a": "y", "b": "y"}, "tags": ["one", "two"]})
    )
    web = records(
        "web", fields, row("web", "CRMID:1", {"consents": {"b": "n"}, "tags": ["three"]}, batch="b2")
    )

    (profile,) = await exported(engine, tmp_path, crm, web, fields=["consents", "tags"])

    assert profile == {"consents": {"a": "y", "b": "n"}, "tags": ["three"]}


async def test_items_of_an_array_are_trimmed_and_keep_their_number(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    orders = ArrayType(ObjectType({"sku": TEXT, "price": DOUBLE}))
    crm = records(
        "crm",
        {"orders": orders},
        row("crm", "CRMID:1", {"orders": [{"sku": "a", "price": 1.0}, {"price": 2.0}]}),
    )

    (profile,) = await exported(engine, tmp_path, crm, fields=["orders.sku"])

    assert profile == {"orders": [{"sku": "a"}, None]}


async def test_numbers_of_several_sources_come_out_as_the_type_that_holds_both(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    crm = records("crm", {"points": LONG}, row("crm", "CRMID:1", {"points": 3}))
    web = records("web", {"points": DOUBLE}, row("web", "CRMID:2", {"points": 0.5}, batch="b2"))

    profiles = await exported(engine, tmp_path, crm, web, fields=["points"])

    assert sorted(profile["points"] for profile in profiles) == [0.5, 3.0]


async def test_events_are_attached_in_order_once_each_and_only_from_the_window(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    crm = records("crm", {}, row("crm", "CRMID:1"))
    web = events(
        "web",
        {"page": TEXT},
        row("web", "CRMID:1", {"_id": "old", "timestamp": at(5), "page": "too early"}, batch="b2"),
        row("web", "CRMID:1", {"_id": "b", "timestamp": at(1), "page": "home"}, batch="b3"),
        row("web", "CRMID:1", {"_id": "a", "timestamp": at(1), "page": "again"}, batch="b3", number=1),
        row("web", "CRMID:1", {"_id": "b", "timestamp": at(0), "page": "first"}, batch="b3", number=2),
    )

    (profile,) = await exported(
        engine, tmp_path, crm, web, fields=["identities.id"], event_fields=["page"], window=(at(2), at(3))
    )

    assert profile["timeSeriesEvents"] == [{"page": "first"}, {"page": "again"}]


@pytest.mark.parametrize(("empty_profiles", "expected"), [(False, 0), (True, 1)])
async def test_who_has_events_only_is_left_out_unless_asked_for(
    engine: DuckDbEngine, tmp_path: Path, *, empty_profiles: bool, expected: int
) -> None:
    web = events("web", {}, row("web", "CRMID:1", {"_id": "1", "timestamp": at(0)}))

    plan = plan_of([web], lake=tmp_path, empty_profiles=empty_profiles)
    _, (result,) = await run(engine, plan, tmp_path)

    assert (result.counts.profiles_exported, result.counts.events_only) == (expected, 1 - expected)


@pytest.mark.parametrize("as_parquet", [False, True])
async def test_s13_what_is_uploaded_without_a_value_is_exported_as_null(
    engine: DuckDbEngine, tmp_path: Path, *, as_parquet: bool
) -> None:
    by = ObjectType({"who": TEXT})
    fields = ObjectType(
        {
            "orders": ArrayType(ObjectType({"sku": TEXT, "by": by})),
            "scores": MapType(ObjectType({"value": LONG, "by": by})),
            "rooms": MapType(MapType(LONG)),
            "places": MapType(ArrayType(by)),
        }
    )
    nobody = {"who": None}
    record: dict[str, Any] = {
        "crmId": "1",
        "orders": [{"sku": "a", "by": nobody}, {"sku": None, "by": nobody}, None],
        "scores": {"a": {"value": 1, "by": nobody}, "b": {"value": None, "by": nobody}, "c": None},
        "rooms": {"x": {"y": None}, "z": {}},
        "places": {"here": [nobody], "there": None},
    }
    sent: Any = [record]
    if as_parquet:
        entries = {name: record[name] for name in ("crmId", "orders")}
        entries |= {name: list(record[name].items()) for name in ("scores", "places")}
        entries["rooms"] = [("x", [("y", None)]), ("z", [])]
        types = [(name, arrow_type(kind)) for name, kind in (("crmId", TEXT), *fields.fields.items())]
        sent = pa.Table.from_pylist([entries], pa.schema(types))
    uploader = Uploader(tmp_path)
    result = uploader.ingest(sent, CRM, known=fields)
    part = SourcePart(
        result.fields,
        tuple(PinnedFile(f"files/{file.name}", file.rows, file.bytes) for file in result.files),
    )
    plan = replace(
        plan_of([records("crm", fields.fields, row("crm", "CRM:1", batch="b-1"))]),
        sources=(Source("crm", DatasetKind.RECORD, (part,)),),
    )

    _, (exported_range,) = await run(engine, plan, tmp_path)

    (file,) = exported_range.files
    (profile,) = pq.read_table(tmp_path / "attempt" / file.name).to_pylist(maps_as_pydicts="strict")
    assert {name: profile[name] for name in fields.fields} == {
        "orders": [{"sku": "a", "by": None}, None, None],
        "scores": {"a": {"value": 1, "by": None}},
        "rooms": None,
        "places": {"here": [None]},
    }


# --- Files ---


async def test_files_are_what_is_said_of_them_and_every_column_is_optional(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    crm = records("crm", {"person": PERSON}, row("crm", "CRMID:1", person(first="Ann")))
    web = events("web", {}, row("web", "CRMID:1", {"_id": "1", "timestamp": at(0)}, batch="b2"))
    plan = plan_of([crm, web], lake=tmp_path, event_fields=[])

    _, (result,) = await run(engine, plan, tmp_path)

    (file,) = result.files
    path = tmp_path / "attempt" / file.name
    assert (file.bytes, file.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    schema = pq.read_schema(path)
    assert schema.names == [
        "identityMap",
        "segmentMembership",
        "person",
        "timeSeriesEvents",
        PROFILE_ID,
        BATCH_ID,
    ]
    assert all(schema.field(name).nullable for name in schema.names)
    assert pq.read_metadata(path).num_rows == file.rows == 1
    about = {name: value for name, value in pq.read_metadata(path).metadata.items() if b"profile-" in name}
    assert about == {
        b"profile-export.batch-id": plan.batch_id.encode(),
        b"profile-export.policy-id": b"policy",
        b"profile-export.policy-version": b"1",
        b"profile-export.identity-graph": b"none",
        b"profile-export.attribute-merge": b"timestampOrdered",
    }


async def test_ranges_share_no_profile_and_an_empty_one_writes_no_file(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    crm = records("crm", {}, *(row("crm", f"CRMID:{number}", number=number) for number in range(40)))
    ranges = (
        KeyRange(0, LOWEST_KEY, LOWEST_KEY),
        KeyRange(1, LOWEST_KEY + 1, 0),
        KeyRange(2, 1, HIGHEST_KEY),
    )

    _, (empty, *results) = await run(engine, plan_of([crm], lake=tmp_path), tmp_path, ranges)

    assert empty.files == ()
    assert sum(file.rows for result in results for file in result.files) == 40
    assert [file.name for result in results for file in result.files] == ["1-0.parquet", "2-0.parquet"]


async def test_without_any_row_there_is_no_file(engine: DuckDbEngine, tmp_path: Path) -> None:
    facts, (result,) = await run(engine, plan_of([], lake=tmp_path, graph=IdentityGraph.PDG), tmp_path)

    assert facts.identities == 0
    assert result.files == ()


async def test_a_folder_may_have_a_name_that_looks_like_a_pattern(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    lake = tmp_path / "it's [a] lake*"
    crm = records("crm", {}, row("crm", "CRMID:1"))

    assert len(await exported(engine, lake, crm)) == 1


async def test_resolution_says_what_it_found(engine: DuckDbEngine, tmp_path: Path) -> None:
    crm = records(
        "crm", {}, row("crm", "CRMID:1", links=["Email:a", "Email:b"]), row("crm", "CRMID:2", number=1)
    )

    facts, _ = await run(engine, plan_of([crm], lake=tmp_path, graph=IdentityGraph.PDG), tmp_path)

    assert (facts.identities, facts.components, facts.identities_moved) == (3, 1, 2)


# --- Failures ---


def child_of(engine: DuckDbEngine) -> int:
    (child,) = engine.children
    return child


async def test_a_killed_child_ends_the_attempt_and_the_next_one_works(
    own_engine: DuckDbEngine, tmp_path: Path
) -> None:
    plan = plan_of([records("crm", {}, row("crm", "CRMID:1"))], lake=tmp_path)

    async def attempt_it() -> None:
        async with own_engine.attempt(plan, tmp_path, tmp_path / "first", lambda _: None) as attempt:
            os.kill(child_of(own_engine), signal.SIGKILL)
            await attempt.resolve()

    with pytest.raises(EngineDiedError, match="killed by signal 9"):
        await attempt_it()

    _, (result,) = await run(own_engine, plan, tmp_path)
    assert result.counts.profiles_exported == 1


async def test_an_attempt_that_is_cancelled_while_it_works_kills_its_child(
    own_engine: DuckDbEngine, tmp_path: Path
) -> None:
    plan = plan_of([records("crm", {}, row("crm", "CRMID:1"))], lake=tmp_path)
    child = child_of(own_engine)
    working = asyncio.Event()

    async def attempt_it() -> None:
        async with own_engine.attempt(plan, tmp_path, tmp_path / "attempt", lambda _: None) as attempt:
            # Stopped before it is asked, it works for as long as nobody kills it.
            os.kill(child, signal.SIGSTOP)
            working.set()
            await attempt.resolve()

    task = asyncio.create_task(attempt_it())
    await working.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    # Not os.kill(child, 0): by now another process may have the number.
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)  # noqa: ASYNC222 - with WNOHANG it does not wait


async def test_running_out_of_memory_ends_the_attempt_only(tmp_path: Path) -> None:
    plan = plan_of(
        [records("crm", {"a": TEXT}, row("crm", "CRMID:1", {"a": "x" * 50_000_000}))], lake=tmp_path
    )
    engine = DuckDbEngine(memory_limit_mb=1, threads=1)

    with pytest.raises(EngineDiedError, match="memory"):
        await run(engine, plan, tmp_path)

    await engine.close()


async def test_a_file_that_is_no_parquet_is_an_error_that_names_it(
    engine: DuckDbEngine, tmp_path: Path
) -> None:
    plan = plan_of([records("crm", {}, row("crm", "CRMID:1"))], lake=tmp_path)
    (file,) = plan.sources[0].parts[0].files
    (tmp_path / file.path).write_bytes(b"no such thing")

    with pytest.raises(EngineFailedError, match=r"0\.parquet"):
        await run(engine, plan, tmp_path)


async def test_a_child_is_used_again_as_long_as_it_is_well(own_engine: DuckDbEngine, tmp_path: Path) -> None:
    plan = plan_of([records("crm", {}, row("crm", "CRMID:1"))], lake=tmp_path)
    first = child_of(own_engine)

    for attempt in ("one", "two"):
        async with own_engine.attempt(plan, tmp_path, tmp_path / attempt, lambda _: None) as running:
            await running.resolve()

    assert child_of(own_engine) == first


async def test_progress_reaches_all_rows_and_memory_is_told(engine: DuckDbEngine, tmp_path: Path) -> None:
    plan = plan_of([records("crm", {}, row("crm", "CRMID:1"))], lake=tmp_path)
    seen: list[EngineProgress] = []

    async with engine.attempt(plan, tmp_path, tmp_path / "attempt", seen.append) as attempt:
        await attempt.resolve()
        result = await attempt.run(EVERYTHING)

    assert seen[-1] == EngineProgress(1, 1)
    assert result.peak_memory_bytes > 10_000_000


async def test_the_output_is_read_by_duckdb_with_one_line(engine: DuckDbEngine, tmp_path: Path) -> None:
    await exported(engine, tmp_path, records("crm", {}, row("crm", "CRMID:1")))

    one_line = f"SELECT identityMap['CRMID'][1].id FROM '{tmp_path}/attempt/*.parquet'"
    found = duckdb.connect().execute(one_line).fetchall()

    assert found == [("1",)]
