"""The engine on data that others have published: people as a union-find finds them, rows as the reference has them."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from profile_export.domain.export.selection import MembershipStatus, SegmentFilter, SegmentSelection
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import SEGMENT_MEMBERSHIP_TYPE, TEXT, FieldType
from profile_export.engines.duckdb.engine import DuckDbEngine
from tests.builders import Part, at, events, plan_of, records, row
from tests.contract.strategies import Export
from tests.contract.test_engine_against_merge import Exporter, check_plan
from tests.service.harness import shared_folder

pytestmark = pytest.mark.timeout(600)

PEOPLE_OF_A_SOURCE = 5_000
CLICKS, USERS = 31_106, 600


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    with asyncio.Runner() as runner:
        engine = DuckDbEngine(memory_limit_mb=512, threads=2)
        runner.run(engine.start())
        yield Exporter(runner, engine)
        runner.run(engine.close())


def exported(exporter: Exporter, parts: tuple[Part, ...], **options: Any) -> list[dict[str, Any]]:
    """Export, hold every row and figure to the reference, and return the profiles of all batches."""
    with TemporaryDirectory() as folder:
        lake = Path(folder)
        plan = plan_of(parts, lake=lake, **options)
        return check_plan(exporter, plan, Export(parts, options, plan.ranges()), lake)


def cells_of(text: str) -> list[dict[str, str]]:
    """Rows of a CSV as Python reads them, without blanks around cells and without empty ones."""
    header, *lines = csv.reader(io.StringIO(text))
    names = [name.strip() for name in header]
    return [
        {name: cell.strip() for name, cell in zip(names, line, strict=True) if cell.strip()} for line in lines
    ]


# --- FEBRL: two sources of people with misspelt names, linked by their social security number ---


def febrl(source: str) -> list[dict[str, str]]:
    path = shared_folder() / "data" / f"febrl_dataset{source}.csv.gz"
    if not path.exists():
        pytest.skip(f"the real data is not here: no {path.name} in a folder `shared` beside the checkout")
    return cells_of(gzip.decompress(path.read_bytes()).decode())


def of_person(person: Mapping[str, str]) -> tuple[str, str]:
    return f"FEBRL:{person['rec_id']}", f"SSN:{person['soc_sec_id']}"


def components(groups: Iterable[Iterable[str]]) -> set[frozenset[str]]:
    """Union-find: what occurs together, through any chain."""
    parents: dict[str, str] = {}

    def find(one: str) -> str:
        while parents.setdefault(one, one) != one:
            one = parents[one]
        return one

    for first, *others in groups:
        for other in others:
            parents[find(other)] = find(first)
    found = defaultdict(set)
    for one in list(parents):
        found[find(one)].add(one)
    return {frozenset(members) for members in found.values()}


def identities(profile: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(
        f"{name}:{item['id']}" for name, items in profile["identityMap"].items() for item in items
    )


@pytest.mark.slow
@pytest.mark.parametrize("order", [None, ["4a", "4b"], ["4b"]], ids=["by time", "4a first", "4b only"])
def test_s4_the_graph_finds_the_people_of_febrl_that_a_union_find_finds(
    exporter: Exporter, order: list[str] | None
) -> None:
    # given two sources, in which a record has an id of its own and the number that both sources know
    sources = {source: febrl(source) for source in ("4a", "4b")}
    people = components(of_person(person) for found in sources.values() for person in found)
    assert [len(found) for found in sources.values()] == [PEOPLE_OF_A_SOURCE] * 2
    parts = tuple(
        records(
            source,
            dict.fromkeys(sorted({name for person in found for name in person}), TEXT),
            *(
                row(
                    source,
                    of_person(person)[0],
                    person,
                    links=of_person(person)[1:],
                    batch=source,
                    number=number,
                )
                for number, person in enumerate(found)
            ),
        )
        for source, found in sources.items()
    )

    # when they are exported under the private graph
    profiles = exported(exporter, parts, graph=IdentityGraph.PDG, order=order)

    # then there is a row for each component, with all of its identities; but for those that only another source knows
    known = {of_person(person)[0] for source in order or sources for person in sources[source]}
    found_people = [identities(profile) for profile in profiles]
    assert len(found_people) == len(set(found_people))
    assert set(found_people) == {members for members in people if members & known}


# --- A clickstream: sessions of users, whose platform and lifecycle change from one to the next ---

OF_A_SESSION = ("platform", "acquisition_channel", "user_cohort")
CLICKS_OF_A_BATCH = 4_000


@cache
def clickstream() -> tuple[Part, ...]:
    """Clicks as events of their session, and what each first click says as records of the session and of the user."""
    path = Path(__file__).parent / "data" / "ecom_clickstream.csv.gz"
    clicks = cells_of(gzip.decompress(path.read_bytes()).decode())
    assert (len(clicks), len({click["user_id"] for click in clicks})) == (CLICKS, USERS)
    of_users, of_sessions, happened = [], [], []
    seen: set[str] = set()
    for number, click in enumerate(clicks):
        batch = number // CLICKS_OF_A_BATCH
        user, session = f"User:{click['user_id']}", f"Session:{click['session_id']}"
        time = datetime.fromisoformat(click["timestamp"]).replace(tzinfo=UTC)
        value = {
            "_id": str(number),
            "timestamp": time,
            "event": click["event"],
            "platform": click["platform"],
        }
        happened.append(
            row("web", session, value, links=[user], batch=f"{batch}-web", number=number % CLICKS_OF_A_BATCH)
        )
        if session not in seen:
            seen.add(session)
            attributes: dict[str, Any] = {name: click[name] for name in OF_A_SESSION if name in click}
            entry = {"status": "realized", "lastQualificationTime": time}
            member = {"segmentMembership": {"lifecycle": {click["user_lifecycle"]: entry}}}
            of_sessions.append(
                row("sessions", session, attributes, links=[user], batch=f"{batch}-a", number=number)
            )
            of_users.append(row("users", user, attributes | member, batch=f"{batch}-b", number=number))
    fields: dict[str, FieldType] = dict.fromkeys(OF_A_SESSION, TEXT)
    memberships = {"segmentMembership": SEGMENT_MEMBERSHIP_TYPE}
    return (
        records("users", fields | memberships, *of_users, upserts=True),
        records("sessions", fields, *of_sessions),
        events("web", {"event": TEXT, "platform": TEXT}, *happened),
    )


LOYAL = SegmentSelection(
    (
        SegmentFilter("loyal", "LIFECYCLE"),
        SegmentFilter("new", "lifecycle", (MembershipStatus.REALIZED, MembershipStatus.EXITED)),
    )
)
EXPORTS: dict[str, dict[str, Any]] = {
    "every user and session": {},
    "people with their clicks": {"graph": IdentityGraph.PDG, "event_fields": []},
    "users before sessions, clicks of a window": {
        "graph": IdentityGraph.PDG,
        "order": ["users", "sessions"],
        "event_fields": ["event", "identities.id"],
        "window": (at(4), at(13)),
    },
    "sessions only, and who has no record of one": {"order": ["sessions", "web"], "empty_profiles": True},
    "the loyal and the new, a batch each": {
        "graph": IdentityGraph.PDG,
        "fields": ["platform", "segmentMembership.lifecycle.loyal", "identities.id"],
        "segments": LOYAL,
        "segment_batches": ("loyal", "new"),
    },
    "what came late, qualified within a month": {
        "order": ["users"],
        "newer_than": at(15),
        "segments": SegmentSelection(
            LOYAL.segments, datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)
        ),
        "event_fields": ["_id"],
    },
}


SLOW = {"every user and session", "people with their clicks", "sessions only, and who has no record of one"}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=[pytest.mark.slow] if name in SLOW else [], id=name)
        for name, options in EXPORTS.items()
    ],
)
@pytest.mark.slow
def test_the_engine_exports_a_clickstream_as_the_reference_does(
    exporter: Exporter, options: dict[str, Any]
) -> None:
    assert exported(exporter, clickstream(), **options)
