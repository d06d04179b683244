"""A kept graph is a cache: what an export finds out does not depend on it, but how much it has to read does."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from profile_export.domain.catalog.batches import BatchState
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.export.plan import ExportPlan
from profile_export.domain.merging.identity import Identity, IdentityKey, identity_key
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.engines.duckdb import session as duckdb_session
from profile_export.engines.duckdb.session import DuckDbSession
from profile_export.engines.identity.graph import KEY, GraphWriter, KeptGraphs, graph_facts
from profile_export.processes.supervisor import Pool, Supervisor
from tests.builders import Part, plan_of, records, row
from tests.contract.house import House
from tests.contract.house import opened as opened_house

GRAPHS = "graphs/1"
Rows = list[tuple[int, int, int, int]]
# What each batch links; 5 repeats what 1 says, so that reverting one of them changes nothing.
LINKS = {1: "ab", 2: "bc", 3: "de", 4: "cd", 5: "ab", 6: "xy"}
NUMBERS = st.sets(st.sampled_from(sorted(LINKS)), max_size=len(LINKS))


def part(*numbers: int) -> Part:
    """A file with the rows of batches, one each."""
    return records(
        "crm",
        {},
        *(
            row("crm", f"Id:{LINKS[one][0]}", links=[f"Id:{LINKS[one][1]}"], batch=f"b{one}")
            for one in numbers
        ),
    )


def plan(lake: Path, *files: Sequence[int]) -> ExportPlan:
    """The plan of these batches, in files of one or several."""
    made = plan_of([part(*numbers) for numbers in files], graph=IdentityGraph.PDG, lake=lake)
    # A batch keeps its number whatever else counts.
    numbered = tuple(replace(batch, number=int(batch.id[1:])) for batch in made.batches)
    return replace(made, batches=numbered, graph_folder=GRAPHS)


@contextmanager
def session(plan: ExportPlan, lake: Path) -> Iterator[DuckDbSession]:
    with TemporaryDirectory(dir=lake) as folder:
        opened = DuckDbSession(plan, lake, Path(folder), {}, lambda *_: None)
        yield opened
        opened.close()


def rows(graph: Path | None) -> Rows:
    return [] if graph is None else [tuple(line.values()) for line in pq.read_table(graph).to_pylist()]


def resolved(plan: ExportPlan, lake: Path) -> Rows:
    with session(plan, lake) as opened:
        return rows(opened.identity_graph())


def rebuilt(plan: ExportPlan, lake: Path) -> Rows:
    return resolved(replace(plan, graph_folder=""), lake)


def kept(lake: Path) -> list[Path]:
    folder = lake / GRAPHS
    return sorted(folder.iterdir()) if folder.exists() else []


def made_from(lake: Path) -> list[set[str]]:
    return sorted((set(graph_facts(file).batches) for file in kept(lake)), key=sorted)


def joined(*pairs: str) -> Rows:
    """The graph of identities of which each two are one person, and no three."""
    both = [sorted((identity_key(Identity("Id", name)) for name in pair), key=low_first) for pair in pairs]
    return sorted((*moved, *profile) for profile, moved in both)


def low_first(key: IdentityKey) -> IdentityKey:
    high, low = key
    return low, high


def plant(lake: Path, pair: str, **batches: int) -> None:
    """Keep a graph of these batches that says what none of them does: so one can tell when it is used."""
    ((high, low, *profile),) = joined(pair)
    with TemporaryDirectory(dir=lake) as folder:
        graph = Path(folder) / "graph.parquet"
        with GraphWriter(graph) as writer:
            writer.write(np.array([(high, low)], KEY), np.array([tuple(profile)], KEY))
            writer.finish(1, batches)
        KeptGraphs(lake / GRAPHS).keep(graph)


@pytest.fixture(params=["rows in tables", "rows in files"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "rows in files":
        monkeypatch.setattr(duckdb_session, "_ROWS_READ_AT_ONCE", 0)
    return tmp_path


# --- Which graph is used ---


def test_a_graph_of_the_same_batches_is_used_as_it_is(lake: Path) -> None:
    plant(lake, "pq", b1=1, b3=3)

    found = resolved(plan(lake, [1], [3]), lake)

    assert found == joined("pq")
    assert made_from(lake) == [{"b1", "b3"}]


def test_a_graph_of_some_batches_is_extended_by_the_links_of_the_others(lake: Path) -> None:
    plant(lake, "pq", b1=1)

    found = resolved(plan(lake, [1], [3]), lake)

    assert found == joined("pq", "de")
    assert made_from(lake) == [{"b1"}, {"b1", "b3"}]


def test_the_largest_graph_that_fits_is_extended(lake: Path) -> None:
    plant(lake, "pq", b1=1, b3=3)
    plant(lake, "rs", b1=1)

    assert resolved(plan(lake, [1], [3], [6]), lake) == joined("pq", "xy")


def test_of_a_file_with_several_batches_only_the_rows_of_new_ones_extend_a_graph(lake: Path) -> None:
    plant(lake, "pq", b1=1)

    assert resolved(plan(lake, [1, 3]), lake) == joined("pq", "de")


def test_a_graph_with_a_batch_that_does_not_count_any_more_is_not_used(lake: Path) -> None:
    plant(lake, "pq", b1=1, b2=2)

    assert resolved(plan(lake, [1], [3]), lake) == joined("ab", "de")


def test_a_batch_that_bears_the_id_of_a_former_one_is_another(lake: Path) -> None:
    plant(lake, "pq", b1=9)

    assert resolved(plan(lake, [1]), lake) == joined("ab")


def test_batches_without_links_extend_a_graph_too(lake: Path) -> None:
    first = plan(lake, [1])
    resolved(first, lake)
    quiet = records("crm", {}, row("crm", "Id:z", batch="b2"))
    made = plan_of([part(1), quiet], graph=IdentityGraph.PDG, lake=lake)

    found = resolved(replace(made, graph_folder=GRAPHS), lake)

    assert found == joined("ab")
    assert made_from(lake) == [{"b1"}, {"b1", "b2"}]


def test_nothing_is_kept_where_the_plan_names_no_folder_or_nothing_is_linked(lake: Path) -> None:
    linked = plan(lake, [1])
    web = records("web", {}, row("web", "Id:z"))
    quiet = replace(plan_of([web], graph=IdentityGraph.PDG, lake=lake), graph_folder=GRAPHS)

    assert rebuilt(linked, lake) == joined("ab")
    assert resolved(replace(linked, graph=IdentityGraph.NONE), lake) == []
    assert resolved(quiet, lake) == []
    assert kept(lake) == []


# --- Rebuilt and extended are the same ---


@settings(max_examples=6, deadline=None)
@given(
    steps=st.lists(NUMBERS, min_size=1, max_size=6),
    batches_per_file=st.integers(1, 3),
    in_files=st.booleans(),
)
def test_whatever_was_kept_before_a_graph_is_the_one_that_its_batches_give(
    steps: list[set[int]], batches_per_file: int, *, in_files: bool
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        if in_files:
            patched.setattr(duckdb_session, "_ROWS_READ_AT_ONCE", 0)
        lake = Path(folder)
        for step in map(sorted, steps):
            files = [
                step[start : start + batches_per_file] for start in range(0, len(step), batches_per_file)
            ]
            current = plan(lake, *files)
            with session(current, lake) as opened, session(replace(current, graph_folder=""), lake) as anew:
                facts = opened.resolve()
                assert facts == anew.resolve()
                assert rows(opened.identity_graph()) == rows(anew.identity_graph())


# --- Damage, and others at work ---


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def changed_inside(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[30] ^= 1
    file.write_bytes(content)


def another_file(file: Path) -> None:
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)


def of_before(file: Path) -> None:
    """A graph whose profiles have the keys whose high half is the smallest, as it was kept then."""
    metadata = pq.read_metadata(file).metadata
    batches = metadata[b"profile_export.batches.2"]
    former = {b"profile_export.batches": batches, b"profile_export.components": b"1"}
    pq.write_table(pq.read_table(file).replace_schema_metadata(former), file)
    file.rename(file.with_name(f"{hashlib.sha256(file.read_bytes()).hexdigest()}.parquet"))


@pytest.mark.parametrize("damage", [cut_off, emptied, changed_inside, another_file])
def test_a_damaged_graph_is_made_anew(lake: Path, damage: object) -> None:
    current = plan(lake, [1], [3])
    resolved(current, lake)
    (file,) = kept(lake)
    content = file.read_bytes()
    assert callable(damage)
    damage(file)

    found = resolved(current, lake)

    assert found == joined("ab", "de")
    assert file.read_bytes() == content


def test_a_graph_of_before_is_not_used(lake: Path) -> None:
    plant(lake, "pq", b1=1, b3=3)
    (file,) = kept(lake)
    of_before(file)

    assert resolved(plan(lake, [1], [3]), lake) == joined("ab", "de")


def test_behind_a_damaged_graph_a_smaller_one_is_extended(lake: Path) -> None:
    plant(lake, "pq", b1=1)
    plant(lake, "rs", b1=1, b3=3)
    damaged = next(file for file in kept(lake) if len(graph_facts(file).batches) == 2)
    changed_inside(damaged)

    assert resolved(plan(lake, [1], [3]), lake) == joined("pq", "de")
    assert not damaged.exists()


def test_few_graphs_are_kept_the_ones_of_use_longest(lake: Path) -> None:
    for number in (1, 2, 3):
        resolved(plan(lake, [number]), lake)
    resolved(plan(lake, [1]), lake)

    resolved(plan(lake, [4]), lake)

    assert made_from(lake) == [{"b1"}, {"b3"}, {"b4"}]


def test_a_session_goes_on_when_its_graph_is_removed(lake: Path) -> None:
    current = plan(lake, [1], [2])
    resolved(current, lake)
    with session(current, lake) as opened:
        graph = opened.identity_graph()
        shutil.rmtree(lake / GRAPHS)

        facts = opened.resolve()
        results = [opened.run(key_range) for key_range in current.ranges()]

        assert opened.identity_graph() == graph
    assert (facts.identities, facts.components) == (3, 1)
    assert sum(result.counts.profiles_exported for result in results) == 1


def test_sessions_at_work_at_once_find_the_same_and_keep_it_once(lake: Path) -> None:
    current = plan(lake, [1], [2], [3])

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: resolved(current, lake), range(8)))

    assert found == [rebuilt(current, lake)] * 8
    assert made_from(lake) == [{"b1", "b2", "b3"}]


def test_a_graph_that_cannot_be_kept_does_no_harm(lake: Path) -> None:
    (lake / "graphs").write_text("no folder")

    assert resolved(plan(lake, [1]), lake) == joined("ab")


def test_a_file_system_without_second_names_gets_copies(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", refuse)

    found = [resolved(plan(lake, [1]), lake) for _ in range(2)]

    assert found == [joined("ab")] * 2
    assert len(kept(lake)) == 1


# --- With a store ---


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened_house(House(tmp_path, Pool(Supervisor()))) as made:
        yield made


async def test_a_tenant_keeps_its_graphs_in_a_folder_that_bears_no_name_of_its(house: House) -> None:
    stranger = await house.snapshots.take(Tenant("acme", "dev"))
    crm = await house.dataset()
    await house.people(crm, 1, 2, 3)

    current = await house.plan()
    await house.export()

    assert stranger.graph_folder == ""
    assert current.graph_folder == "graphs/1"
    assert made_from(house.lake.root) == [{"p1", "p2", "p3"}]


async def test_a_graph_follows_uploads_reverts_and_compaction(house: House) -> None:
    crm = await house.dataset()
    found = []
    for number in range(1, 6):
        await house.people(crm, number)
        found.append(await house.export())
    await house.compact()
    await house.ended("p2", BatchState.REVERTED)
    found.append(await house.export())

    # p2 and p3, p4 and p5 are one person each.
    assert [len(profiles) for profiles in found] == [1, 2, 2, 3, 3, 3]
    house.lake.remove(GRAPHS)
    assert found[-1] == await house.export()
