"""The fields of the generated records: their paths, types, and how each value is made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NAMES = (
    "Ada Alan Anke Aylin Ben Carla Chen Daan Elif Emma Femke Grace Hugo Ines Jonas Kofi Lea Omar Rosa Yara"
)
FAMILIES = (
    "Adler Bakker Costa Demir Ebner Faber Garcia Hansen Ivanova Jansen Kaya Lindt Moreau Novak Okafor Tanaka"
)
CITIES = "Amsterdam Antwerp Berlin Cologne Ghent Hamburg Lyon Rotterdam Utrecht Vienna"
COUNTRIES = "NL BE DE FR AT"
TOPICS = "garden kitchen lighting outdoor storage textiles"


@dataclass(frozen=True)
class Leaf:
    """A field. `made` is DuckDB SQL in which `{h}` is a hash of person and source, `i` the person's number.

    `missing` is the share of records, in percent, that lack it.
    """

    path: str
    made: str
    missing: int = 25


def one_of(words: str) -> str:
    """Choose a word by the hash."""
    listed = ", ".join(f"'{word}'" for word in words.split())
    return f"([{listed}])[1 + ({{h}} % {len(words.split())})::INTEGER]"


_HASH = "({h} % {modulus})"
_EPOCH = "TIMESTAMPTZ '2020-01-01 00:00:00+00'"
_SEGMENTS = (
    "map_from_entries(list_transform(range(1 + ({h} % 3)::BIGINT), lambda k: {{'k': 'seg-' || ((i + k * 7) % 40), "
    f"'v': {{{{'lastQualificationTime': {_EPOCH} + to_seconds((({{h}} + k) % 9000)::BIGINT * 3600), "
    "'status': CASE ({h} + k) % 4 WHEN 0 THEN 'exited' ELSE 'realized' END}}}}))"
)
SEGMENTS = Leaf("segmentMembership", f"MAP {{{{'ups': {_SEGMENTS}}}}}", 75)
CRM_ID = Leaf("crmId", "'C-' || i", 0)
EMAIL = Leaf("personalEmail.address", "'user' || i || '@' || " + one_of(CITIES) + " || '.example.com'", 10)

WIDE = (
    CRM_ID,
    Leaf("person.name.firstName", one_of(NAMES)),
    Leaf("person.name.lastName", one_of(FAMILIES)),
    Leaf("person.name.courtesyTitle", one_of("Mr Ms Dr Prof"), 60),
    Leaf("person.birthDate", "DATE '1940-01-01' + ({h} % 25000)::INTEGER"),
    Leaf("person.gender", one_of("female male nonspecific"), 40),
    EMAIL,
    Leaf("personalEmail.verified", "({h} % 2) = 0", 50),
    Leaf("mobilePhone.number", "'+1 555 ' || ({h} % 10000000)"),
    Leaf("mobilePhone.validity", one_of("consistent invalid unknown"), 50),
    Leaf("homeAddress.street1", "({h} % 200) || ' ' || " + one_of(FAMILIES) + " || ' street'"),
    Leaf("homeAddress.city", one_of(CITIES)),
    Leaf("homeAddress.postalCode", "(10000 + {h} % 80000)::VARCHAR"),
    Leaf("homeAddress.countryCode", one_of(COUNTRIES)),
    Leaf("homeAddress.region.name", "'region ' || ({h} % 60)", 60),
    Leaf("workAddress.street1", "({h} % 300) || ' ' || " + one_of(FAMILIES) + " || ' avenue'", 60),
    Leaf("workAddress.city", one_of(CITIES), 60),
    Leaf("workAddress.postalCode", "(10000 + {h} % 80000)::VARCHAR", 60),
    Leaf("loyalty.tier", one_of("bronze silver gold"), 40),
    Leaf("loyalty.points", "({h} % 50000)::BIGINT", 40),
    Leaf("loyalty.joinDate", f"{_EPOCH} + to_seconds(({{h}} % 150000000)::BIGINT)", 40),
    Leaf("loyalty.balance", "(({h} % 1000000) / 100)::DECIMAL(12, 2)", 50),
    Leaf("consents.marketing.email.val", one_of("y n"), 10),
    Leaf("consents.marketing.call.val", one_of("y n"), 30),
    Leaf("preferredLanguage", one_of("nl-NL de-DE fr-FR de-AT"), 20),
    Leaf("totals.revenue", "({h} % 1000000) / 100.0::DOUBLE"),
    Leaf("totals.orders", "({h} % 90)::BIGINT"),
    Leaf("interests", f"list_transform(range(({{h}} % 4)::BIGINT), lambda k: {one_of(TOPICS)} || k)", 50),
    Leaf(
        "devices",
        "list_transform(range(({h} % 3)::BIGINT), lambda k: "
        "{{'model': 'model ' || (({h} + k) % 300), 'system': CASE k WHEN 0 THEN 'iOS' END}})",
        50,
    ),
    Leaf(
        "scores",
        "map_from_entries(list_transform(range(1 + ({h} % 3)::BIGINT), "
        "lambda k: {{'k': 'model-' || ((i + k) % 5), 'v': (({h} + k) % 1000) / 1000.0::DOUBLE}}))",
        85,
    ),
    SEGMENTS,
)
"""31 fields: objects up to three deep, arrays, a map, and memberships."""

NARROW_PATHS = (
    "person.name.firstName",
    "person.name.lastName",
    "personalEmail.address",
    "mobilePhone.number",
    "homeAddress.city",
    "homeAddress.postalCode",
    "homeAddress.countryCode",
    "loyalty.tier",
    "loyalty.points",
)
"""The nine of the narrow exports, which show `identityMap` too."""

NARROW = tuple(leaf for leaf in WIDE if leaf.path in NARROW_PATHS)

Tree = Mapping[str, "Tree | str"]


def tree(values: Mapping[str, str]) -> Tree:
    """Nest expressions, given by dotted paths, as the fields are nested."""
    nested: dict[str, Tree | str] = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        place = nested
        for parent in parents:
            inner = place.setdefault(parent, {})
            assert isinstance(inner, dict)
            place = inner
        place[name] = value
    return nested


def columns(values: Mapping[str, str]) -> list[str]:
    """Write the select list of nested expressions; an object without any value is null."""
    return [f'{_nested(value)[0]} AS "{name}"' for name, value in tree(values).items()]


def _nested(value: Tree | str) -> tuple[str, Sequence[str]]:
    if isinstance(value, str):
        return value, (value,)
    members = {name: _nested(member) for name, member in value.items()}
    packed = ", ".join(f'"{name}" := {text}' for name, (text, _) in members.items())
    inside = [leaf for _, leaves in members.values() for leaf in leaves]
    filled = " OR ".join(f"{leaf} IS NOT NULL" for leaf in inside)
    return f"CASE WHEN {filled} THEN struct_pack({packed}) END", inside
