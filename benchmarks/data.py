"""The data: three record sources and events, made once and kept in `.bench/`, as the files that a client uploads.

Deterministic: a value follows from the number of its person, the source and the field. Sources overlap, contradict each
other and lack values; some identities stand twice in a source, so that a record replaces another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from benchmarks.leaves import NARROW, WIDE, Leaf, columns

VERSION = 1
"""To be raised with every change of what is generated."""
FOLDER = Path(__file__).parents[1] / ".bench"


@dataclass(frozen=True)
class Upload:
    """A file to upload as one batch."""

    path: Path
    rows: int


@dataclass(frozen=True)
class SourceData:
    """A source: its uploads in their order and its declared identities (path, namespace); the first is primary."""

    name: str
    uploads: tuple[Upload, ...]
    identities: tuple[tuple[str, str], ...] = ()
    is_event: bool = False


@dataclass(frozen=True)
class Sample:
    """What one tenant gets."""

    name: str
    sources: tuple[SourceData, ...]

    @property
    def rows(self) -> int:
        """Rows of all sources."""
        return sum(upload.rows for source in self.sources for upload in source.uploads)


_CRM = (("crmId", "CRM"),)
_CRM_AND_EMAIL = (("crmId", "CRM"), ("personalEmail.address", "Email"))
_EMAIL_AND_LOYALTY = (("personalEmail.address", "Email"), ("loyalty.loyaltyId", "Loyalty"))
# Persons of the linked sample: some stay apart for want of an email, so that fewer make about as many profiles.
_PERSONS_PER_PROFILE = 0.9
_SHARED_EMAIL = (
    "CASE WHEN i % 20000 < 60 THEN 'info' || (i // 20000) ELSE 'user' || {person} END || '@example.com'"
)
_ECID = "lpad(((i * 7919) % 1000000007)::VARCHAR, 20, '0')"


def plain_sample(profiles: int) -> Sample:
    """31 fields, one identity per record, the same in all sources."""
    maker = _Maker(f"plain-{profiles}", profiles)
    again = "i % 33 = {source}"
    sources = []
    for source, name in enumerate(("crm", "shop", "loyalty")):
        replaced = again.format(source=source)
        values = _values(WIDE, source)
        newer = _values(WIDE, source + 10)
        first = f"i % 40 <> {source}"
        uploads: tuple[Upload, ...]
        if name == "loyalty":
            uploads = (maker.make(name, [(values, first)]), maker.make(f"{name}-update", [(newer, replaced)]))
        else:
            uploads = (maker.make(name, [(values, first), (newer, replaced)]),)
        sources.append(SourceData(name, uploads, _CRM))
    return Sample("plain", tuple(sources))


def linked_sample(profiles: int) -> Sample:
    """Nine fields, sources that know people by different identities, and three events per person."""
    maker = _Maker(f"linked-{profiles}", round(profiles * _PERSONS_PER_PROFILE))
    return Sample(
        "linked", (_linked_crm(maker), _linked_shop(maker), _linked_newsletter(maker), _events(maker))
    )


def _linked_crm(maker: _Maker) -> SourceData:
    values = _values(NARROW, 0) | {"crmId": "'C-' || i"}
    known = values | {"personalEmail.address": _sometimes(_SHARED_EMAIL.format(person="i"), 90, 1)}
    # A replaced record still links: its newer one tells somebody else's email.
    newer = _values(NARROW, 10) | {
        "crmId": "'C-' || i",
        "personalEmail.address": _SHARED_EMAIL.format(person="((i * 31 + 17) % {persons})").replace(
            "{persons}", str(maker.persons)
        ),
        "segmentMembership": _values((WIDE[-1],), 10)["segmentMembership"],
    }
    older = known | {"segmentMembership": _values((WIDE[-1],), 0)["segmentMembership"]}
    return SourceData("crm", (maker.make("crm", [(older, "true"), (newer, "i % 33 = 0")]),), _CRM_AND_EMAIL)


def _linked_shop(maker: _Maker) -> SourceData:
    values = _values(NARROW, 1) | {
        "personalEmail.address": _SHARED_EMAIL.format(person="i"),
        "loyalty.loyaltyId": _sometimes("'L-' || i", 40, 2),
    }
    newer = values | _values(tuple(leaf for leaf in NARROW if "Email" not in leaf.path), 11)
    return SourceData(
        "shop", (maker.make("shop", [(values, "i % 40 <> 1"), (newer, "i % 33 = 1")]),), _EMAIL_AND_LOYALTY
    )


def _linked_newsletter(maker: _Maker) -> SourceData:
    state = "CASE hash(i, 5) % 3 WHEN 0 THEN 'authenticated' WHEN 1 THEN 'loggedOut' END"
    email = f"[{{'id': {_SHARED_EMAIL.format(person='i')}, 'authenticatedState': {state}, 'primary': true}}]"
    device = f"[{{'id': {_ECID}, 'authenticatedState': NULL, 'primary': NULL}}]"
    both, one = f"MAP {{'Email': {email}, 'ECID': {device}}}", f"MAP {{'Email': {email}}}"
    identities = f"CASE WHEN i % 10 = 0 THEN {both} ELSE {one} END"
    segments = {"segmentMembership": _values((WIDE[-1],), 2)["segmentMembership"]}
    values = {"identityMap": identities} | _values(
        tuple(leaf for leaf in NARROW if "Email" not in leaf.path), 2
    )
    newer = {"identityMap": identities} | _values(
        tuple(leaf for leaf in NARROW if "Email" not in leaf.path), 12
    )
    segments_newer = {"segmentMembership": _values((WIDE[-1],), 12)["segmentMembership"]}
    uploads = (
        maker.make("newsletter", [(values | segments, "i % 40 <> 2")]),
        maker.make("newsletter-update", [(newer | segments_newer, "i % 33 = 2")]),
    )
    return SourceData("newsletter", uploads)


def _events(maker: _Maker) -> SourceData:
    events = round(maker.persons / _PERSONS_PER_PROFILE * 3)
    numbered = (
        f"(SELECT j, (hash(j) % {maker.persons})::BIGINT AS i FROM range({events}) AS numbers(j)) AS happened"
    )
    first, again = (
        maker.make(name, [(_event_values(salt), condition)], numbered)
        for name, salt, condition in (("events", 0, "true"), ("events-again", 1, "j % 100 = 7"))
    )
    return SourceData("events", (first, again), is_event=True)


def _event_values(salt: int) -> dict[str, str]:
    email = f"'id': {_SHARED_EMAIL.format(person='i')}, 'authenticatedState': 'authenticated'"
    device = f"'id': {_ECID}, 'authenticatedState': NULL"
    logged_in = f"MAP {{'Email': [{{{email}, 'primary': true}}], 'ECID': [{{{device}, 'primary': false}}]}}"
    by_email = f"MAP {{'Email': [{{{email}, 'primary': true}}]}}"
    anonymous = f"MAP {{'ECID': [{{{device}, 'primary': true}}]}}"
    kind = "hash(j, 3) % 10"
    # Some are known to the day only: ties, which `_id` breaks.
    moment = "CASE WHEN j % 10 = 0 THEN to_days(j % 365) ELSE to_seconds((hash(j, 4) % 31536000)::BIGINT) END"
    is_purchase = "hash(j, 6) % 3 = 0"
    purchase = f"CASE WHEN {is_purchase} THEN {{}} END"
    return {
        "_id": "'e-' || j",
        "timestamp": f"TIMESTAMPTZ '2024-01-01 00:00:00+00' + {moment}",
        "identityMap": f"CASE WHEN {kind} < 4 THEN {logged_in} WHEN {kind} < 7 THEN {by_email} ELSE {anonymous} END",
        "eventType": f"CASE WHEN {is_purchase} THEN 'commerce.purchases' ELSE 'web.webpagedetails.pageViews' END",
        "commerce.order.priceTotal": purchase.format(f"((hash(j, 7, {salt}) % 100000) / 100.0)::DOUBLE"),
        "commerce.order.currencyCode": purchase.format("'EUR'"),
        "web.webPageDetails.name": f"CASE WHEN NOT {is_purchase} THEN 'page ' || (hash(j, 8) % 500) END",
        "web.webPageDetails.isHomePage": f"CASE WHEN NOT {is_purchase} THEN hash(j, 8) % 500 = 0 END",
        "productListItems": purchase.format(
            "list_transform(range((hash(j, 9) % 3)::BIGINT), "
            "lambda k: {'SKU': 'sku-' || ((j + k) % 900), 'quantity': 1 + k})"
        ),
    }


def _values(leaves: Sequence[Leaf], source: int) -> dict[str, str]:
    values = {}
    for number, leaf in enumerate(leaves):
        salt = source * 100 + number
        value = leaf.made.format(h=f"hash(i, {salt})")
        values[leaf.path] = _sometimes(value, 100 - leaf.missing, salt) if leaf.missing else value
    return values


def _sometimes(value: str, percent: int, salt: int) -> str:
    return f"CASE WHEN hash(i, {salt}, 1) % 100 < {percent} THEN {value} END"


class _Maker:
    def __init__(self, name: str, persons: int) -> None:
        self._folder = FOLDER / f"{name}-v{VERSION}"
        self.persons = persons

    def make(self, name: str, parts: Sequence[tuple[dict[str, str], str]], rows_of: str = "") -> Upload:
        """Write a file of one or more parts, each with its values and a condition, unless it is there already."""
        path = self._folder / f"{name}.parquet"
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                numbered = rows_of or f"(SELECT range AS i FROM range({self.persons})) AS persons"
                query = " UNION ALL ".join(
                    f"SELECT {', '.join(columns(values))} FROM {numbered} WHERE {condition}"
                    for values, condition in parts
                )
                partial = path.with_suffix(".part")
                connection.execute(f"COPY ({query}) TO '{partial}' (FORMAT parquet, COMPRESSION zstd)")
                partial.rename(path)
            (count,) = connection.execute(f"SELECT count(*) FROM '{path}'").fetchall()
        return Upload(path, int(count[0]))
