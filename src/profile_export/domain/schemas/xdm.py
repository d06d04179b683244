"""XDM documents read: the class, the fields and the rules of the schema that a document describes.

The rules are one JSON Schema (draft-06) over a row as it was sent, names as in data, without `type` and without
references to other documents. null, and an object or map without any value, are the same as absent (S13): they
satisfy every rule, and do not make up for a field that is required.

Left out, since they speak of types or of names in paper form: `patternProperties` and `additionalProperties` beside
them, what `additionalProperties` says of names with a prefix that no property has, `propertyNames`, `minProperties`,
`maxProperties`, `dependencies`, `contains`, `items` as a list, formats other than `FORMATS`, and `anyOf`, `oneOf` or
`not` where one of their branches holds any of these or a `type`.

What gives a field no type leaves it to be learned from data, as without a schema: no `type` or several, an object
about which nothing else is said, an array without `items`, what only a branch of `anyOf` or `oneOf` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from profile_export.domain.catalog.datasets import BUILT_IN_SCHEMAS, DatasetKind, Schema
from profile_export.domain.schemas.learning import ValueRefusedError
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    EMPTY,
    IDENTITY_MAP,
    IDENTITY_MAP_TYPE,
    LONG,
    SEGMENT_MEMBERSHIP,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    TIMESTAMP,
    ArrayType,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    TypeConflictError,
    union_types,
)
from profile_export.domain.schemas.xdm_places import (
    Place,
    SchemaInvalidError,
    data_form,
    follow,
    read_place,
    schema_id,
)

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
        raise SchemaInvalidError(place.path, "enum", refused.reason) from None


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


_CLASSES = {schema.id: schema for schema in BUILT_IN_SCHEMAS.values() if schema.kind is not DatasetKind.UNION}
_JSON_TYPES_OF_XDM = {
    **dict.fromkeys(("string", "date", "date-time"), "string"),
    **dict.fromkeys(("byte", "short", "int", "integer", "long"), "integer"),
    **dict.fromkeys(("number", "double"), "number"),
    **dict.fromkeys(("object", "map"), "object"),
    "boolean": "boolean",
    "array": "array",
}
_INSTANTS: dict[str, Scalar] = {"date": DATE, "date-time": TIMESTAMP}
_SCALARS = {"integer": LONG, "number": DOUBLE, "boolean": BOOLEAN}


def read_document(document: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]) -> Schema:
    """Read an XDM document; what comes with its registration is left out of the answer.

    Args:
        document: A JSON Schema of draft-06, checked against its meta schema.
        documents: All documents that `$ref` may name, by `$id`.

    Raises:
        SchemaInvalidError: It describes no rows, or contradicts itself or its class.
        FailedPreconditionError: A `$ref` names something unknown.
    """
    own_id = schema_id(document)
    try:
        return _read(document, {**documents, own_id: document})
    except SchemaInvalidError as error:
        raise error.of(own_id) from None


def _read(document: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]) -> Schema:
    class_id = _class_of(document, documents)
    root = read_place(document, documents)
    described = _type_of(root)
    fields = described if isinstance(described, ObjectType) else EMPTY
    kind = None
    if class_id:
        if described not in (None, fields):
            raise SchemaInvalidError("", "type", "rows are objects.")
        _union(_CLASSES[class_id].fields, fields, root)
        kind = _CLASSES[class_id].kind
    rules = row_rules(root)
    return Schema(
        schema_id(document),
        kind,
        fields,
        class_id,
        title=str(document.get("title", "")),
        rules=json.dumps(rules) if rules else "",
    )


# --- Classes ---


def _class_of(document: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the class of a document, empty for a component."""
    stated = document.get("meta:class")
    if stated is not None:
        if not isinstance(stated, str) or stated not in _CLASSES:
            raise SchemaInvalidError(
                "/meta:class",
                "meta:class",
                f"{stated!r} is not a class that is kept here: {' or '.join(_CLASSES)}.",
            )
        return stated
    if schema_id(document) not in _CLASSES and "meta:intendedToExtend" in document:
        return ""
    reached = _reached_classes(document, documents)
    if len(reached) > 1:
        raise SchemaInvalidError("", "meta:class", f"it extends several classes: {' and '.join(reached)}.")
    return next(iter(reached), "")


def _reached_classes(document: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the classes that a document is, extends or consists of, also through others."""
    seen: dict[str, Mapping[str, Any]] = {}
    waiting = [document]
    while waiting:
        found = waiting.pop()
        if schema_id(found) in seen:
            continue
        seen[schema_id(found)] = found
        waiting += [documents.get(name, {"$id": name}) for name in _extended(found)]
        waiting += [follow(ref, found, documents)[0] for ref in _refs_of(found)]
    return sorted(seen.keys() & _CLASSES.keys())


def _extended(document: Mapping[str, Any]) -> list[str]:
    extended = document.get("meta:extends")
    names = [name for name in extended if isinstance(name, str)] if isinstance(extended, list) else []
    return [name.rstrip("#") for name in names if name.rstrip("#")]


def _refs_of(document: Mapping[str, Any]) -> list[str]:
    parts = [document, *document.get("allOf", ())]
    return [part["$ref"] for part in parts if isinstance(part, Mapping) and "$ref" in part]


# --- Fields ---


def _type_of(place: Place) -> FieldType | None:
    """Return the type of what stands at a place; None where that is left to the data."""
    if place.forbidden:
        return None
    if place.path == (IDENTITY_MAP,):
        return IDENTITY_MAP_TYPE
    match _json_type(place):
        case "object":
            described = _object_or_map_type(place)
        case "array":
            item = _type_of(place.item) if place.item else None
            described = ArrayType(item) if item else None
        case "string":
            described = _text_type(place)
        case "integer" | "number" | "boolean" as scalar:
            described = _SCALARS[scalar]
        case _:
            described = None
    if place.path == (SEGMENT_MEMBERSHIP,):
        return _union(SEGMENT_MEMBERSHIP_TYPE, described or SEGMENT_MEMBERSHIP_TYPE, place)
    return described


def _json_type(place: Place) -> str | None:
    """Return the one JSON type that everything said at a place agrees on; None if there is none or a choice."""
    agreed: set[str] | None = None
    for rule, types in _stated_types(place):
        agreed = types if agreed is None else agreed & types
        if not agreed:
            raise SchemaInvalidError(place.path, rule, "what is said of its type cannot all be true.")
    if agreed is None:
        return _implied_type(place)
    single = agreed - {"null"} - ({"integer"} if "number" in agreed else set())
    return single.pop() if len(single) == 1 else None


def _stated_types(place: Place) -> list[tuple[str, set[str]]]:
    stated: list[tuple[str, set[str]]] = []
    for claim in place.claims:
        if "type" in claim:
            types = claim["type"]
            stated.append(("type", {types} if isinstance(types, str) else set(types)))
        if "meta:xdmType" in claim:
            stated.append(("meta:xdmType", {_json_type_of_xdm(claim["meta:xdmType"], place), "null"}))
    return [(rule, types | {"integer"} if "number" in types else types) for rule, types in stated]


def _json_type_of_xdm(word: object, place: Place) -> str:
    if not isinstance(word, str) or word not in _JSON_TYPES_OF_XDM:
        raise SchemaInvalidError(
            place.path, "meta:xdmType", f"{word!r} is none of {', '.join(sorted(_JSON_TYPES_OF_XDM))}."
        )
    return _JSON_TYPES_OF_XDM[word]


def _implied_type(place: Place) -> str | None:
    if place.members or place.rest:
        return "object"
    if place.item:
        return "array"
    return "string" if _instants(place) else None


def _instants(place: Place) -> set[str]:
    words = {claim.get(key) for claim in place.claims for key in ("format", "meta:xdmType")}
    return {word for word in words if word in _INSTANTS}


def _text_type(place: Place) -> Scalar:
    instants = _instants(place)
    if len(instants) > 1:
        raise SchemaInvalidError(place.path, "format", "it cannot be both a date and an instant.")
    return _INSTANTS[instants.pop()] if instants else TEXT


def _object_or_map_type(place: Place) -> FieldType | None:
    is_stated = any(claim.get("meta:xdmType") == "map" for claim in place.claims)
    if is_stated or not place.members:
        value = _map_value_type(place)
        if value:
            return MapType(value)
        if is_stated:
            raise SchemaInvalidError(
                place.path, "meta:xdmType", "a map needs additionalProperties that type its values."
            )
    return _object_type(place)


def _map_value_type(place: Place) -> FieldType | None:
    value: FieldType | None = None
    for inner in (*place.members.values(), *filter(None, [place.rest])):
        found = _type_of(inner)
        if found:
            value = _union(value, found, inner) if value else found
    return value


def _object_type(place: Place) -> ObjectType | None:
    found = {name: _type_of(member) for name, member in place.members.items()}
    fields = {name: described for name, described in found.items() if described}
    return ObjectType(fields) if fields else None


def _union(known: FieldType, found: FieldType, place: Place) -> FieldType:
    try:
        return union_types(known, found, place.path)
    except TypeConflictError as conflict:
        raise SchemaInvalidError(conflict.path, "type", conflict.message) from None
