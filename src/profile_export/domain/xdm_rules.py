"""The rules of XDM documents: what they ask of rows beyond the types of fields.

The rules are one JSON Schema (draft-06) over a row as it was sent, names as in data, without `type` and without
references to other documents. null, and an object or map without any value, are the same as absent (S13): they
satisfy every rule, and do not make up for a field that is required.

Left out, since they speak of types or of names in paper form: `patternProperties` and `additionalProperties` beside
them, what `additionalProperties` says of names with a prefix that no property has, `propertyNames`, `minProperties`,
`maxProperties`, `dependencies`, `contains`, `items` as a list, formats other than `FORMATS`, and `anyOf`, `oneOf` or
`not` where one of their branches holds any of these or a `type`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from profile_export.domain.learning import ValueRefusedError
from profile_export.domain.schema import IDENTITY_MAP, dotted_path
from profile_export.domain.xdm_names import data_form
from profile_export.domain.xdm_places import Place, SchemaInvalidError

FORMATS = frozenset({"email", "ipv4", "ipv6", "uri"})
"""The formats that are checked. Dates and instants are types of fields."""
NOTHING = "#/definitions/nothing"
VALUE = "#/definitions/value"

_CHECKED = {
    *("pattern", "minLength", "maxLength", "multipleOf", "minimum", "maximum", "exclusiveMinimum"),
    *("exclusiveMaximum", "minItems", "maxItems", "uniqueItems"),
}
_SINGLE_VALUES = {"enum", "const", "format"}
_STRUCTURE = {"properties", "required", "additionalProperties", "items", "allOf", "anyOf", "oneOf", "not"}
_SAY_NOTHING = {"$schema", "$id", "title", "description", "default", "examples", "definitions"}
_PLAIN = _CHECKED | _SINGLE_VALUES | _STRUCTURE | _SAY_NOTHING
# Rules that null, or an object without a value, could break.
_REFUSE_NOTHING = {"enum", "required", "allOf", "anyOf", "oneOf", "not"}
_NEVER: dict[str, Any] = {"not": {}}

_DEFINITIONS = {
    "nothing": {"anyOf": [{"type": "null"}, {"type": "object", "additionalProperties": {"$ref": NOTHING}}]},
    "value": {"not": {"$ref": NOTHING}},
}


def row_rules(root: Place) -> dict[str, Any] | None:
    """Return the rules that hold for a row; None if there is nothing to check."""
    rules = _rules(root)
    return {"definitions": _DEFINITIONS, **rules} if rules else None


def _rules(place: Place) -> dict[str, Any]:
    """Return the rules for what stands at a place; empty if there are none."""
    if place.forbidden:
        return dict(_NEVER)
    rules: dict[str, Any] = {}
    for part in (*_value_rules(place), *_choices(place)):
        for keyword, said in part.items():
            if rules.setdefault(keyword, said) != said:
                rules.setdefault("allOf", []).append({keyword: said})
    return rules | _object_rules(place) | _item_rules(place)


def _value_rules(place: Place) -> Iterable[dict[str, Any]]:
    for claim in place.claims:
        for keyword, said in claim.items():
            if (keyword in _CHECKED and said is not False) or (keyword == "format" and said in FORMATS):
                yield {keyword: said}
            elif keyword in ("enum", "const"):
                yield {"enum": _in_data(said if keyword == "enum" else [said], place)}


def _in_data(values: list[Any], place: Place) -> list[Any]:
    try:
        return [data_form(value) for value in values]
    except ValueRefusedError as refused:
        raise SchemaInvalidError(dotted_path(place.path), "enum", refused.reason) from None


def _choices(place: Place) -> Iterable[dict[str, Any]]:
    for keyword, branches in place.choices:
        if all(map(_is_plain, branches)):
            inside = [_rules(branch) for branch in branches]
            yield {keyword: inside[0] if keyword == "not" else inside}


def _is_plain(place: Place) -> bool:
    """Whether all that is said at a place, and inside it, can be checked."""
    inner = [*place.members.values(), *filter(None, (place.rest, place.item))]
    inner += [branch for _, branches in place.choices for branch in branches]
    return all(_is_plain_claim(claim) for claim in place.claims) and all(map(_is_plain, inner))


def _is_plain_claim(claim: Mapping[str, Any]) -> bool:
    keywords = {keyword for keyword in claim if not keyword.startswith("meta:")}
    return (
        keywords <= _PLAIN
        and claim.get("format", "uri") in FORMATS
        and not isinstance(claim.get("items"), list)
    )


def _object_rules(place: Place) -> dict[str, Any]:
    needed = {name for claim in place.claims for name in claim["required"]}
    required = [name for name in place.members if name in needed]
    rest = _or_nothing(_rules(place.rest)) if place.rest else {}
    properties: dict[str, Any] = {}
    for name, member in place.members.items():
        # The identity map is checked by ingestion itself, whatever documents say of it.
        rules = {} if member.path == (IDENTITY_MAP,) else _rules(member)
        if name in required:
            rules = {**rules, "allOf": [*rules.get("allOf", ()), {"$ref": VALUE}]}
        else:
            rules = _or_nothing(rules)
        if rules or rest:
            properties[name] = rules
    found = {"required": required, "properties": properties, "additionalProperties": rest}
    return {keyword: said for keyword, said in found.items() if said}


def _item_rules(place: Place) -> dict[str, Any]:
    items = _or_nothing(_rules(place.item)) if place.item else {}
    return {"items": items} if items else {}


def _or_nothing(rules: dict[str, Any]) -> dict[str, Any]:
    """Return the rules for a field that may be absent, and so may be null or an object without a value."""
    if rules == _NEVER:
        return {"$ref": NOTHING}
    return {"anyOf": [{"$ref": NOTHING}, rules]} if rules.keys() & _REFUSE_NOTHING else rules
