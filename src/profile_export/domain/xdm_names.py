"""XDM names: from the paper form, which documents use, to the form that they have in data.

`xdm:` is dropped, `@id` is `_id`, and any other prefix becomes an object: `schema:latitude` is `_schema.latitude`,
`https://ns.adobe.com/xdm/channels/email` is `_channels.email`. A name without a prefix stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from profile_export.domain.learning import ValueRefusedError
from profile_export.domain.schema import ArrayType, FieldPath, FieldType, MapType, ObjectType, type_at

_OWN_PREFIX = "xdm"


def data_path(name: str) -> FieldPath:
    """Return where a name of the paper form stands in data. Each part of the answer stands for itself.

    A name that the rule cannot take apart, such as a URI without a path, stays as it is.
    """
    path = _parts(name)
    return path if all(part and ":" not in part and part[0] != "@" for part in path) else (name,)


def _parts(name: str) -> FieldPath:
    if name.startswith("@"):
        return (f"_{name[1:]}",)
    _scheme, is_uri, location = name.partition("://")
    if is_uri:
        _, *segments = location.split("/")
        first, *others = segments[1:] if segments[:1] == [_OWN_PREFIX] else segments or [""]
        return (f"_{first}", *others) if others else (name,)
    prefix, is_prefixed, local = name.partition(":")
    if not is_prefixed or not prefix:
        return (name,)
    return (local,) if prefix == _OWN_PREFIX else (f"_{prefix}", local)


def data_form(value: Any, known: FieldType | None = None) -> Any:
    """Rewrite the names of a JSON value from the paper form; objects that come together become one.

    Args:
        value: Any JSON value; names that are in data form already stay.
        known: Its type, where it is known: the keys of what is a map there stay as they are.

    Raises:
        ValueRefusedError: Two names of one object are the same in data, and not both are objects.
    """
    match value:
        case list():
            return [data_form(item, known.item if isinstance(known, ArrayType) else None) for item in value]
        case dict() if isinstance(known, MapType):
            return {key: data_form(member, known.value) for key, member in value.items()}
        case dict():
            return _object_in_data(value, known if isinstance(known, ObjectType) else ObjectType({}))
    return value


def _object_in_data(value: Mapping[str, Any], known: ObjectType) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name, member in value.items():
        path = data_path(name)
        written = data_form(member, type_at(known, path))
        for part in reversed(path):
            written = {part: written}
        _merge(merged, written, ())
    return merged


def _merge(into: dict[str, Any], more: Mapping[str, Any], path: FieldPath) -> None:
    for name, member in more.items():
        there = into.setdefault(name, member)
        if isinstance(there, dict) and isinstance(member, dict):
            _merge(there, member, (*path, name))
        elif there is not member:
            raise ValueRefusedError((*path, name), "is sent under two names that are the same in data")


def with_data_names(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Rewrite `properties` and `required` of one object schema, with an object of its own for each prefix.

    Both are always there in the answer. What stands under `additionalProperties` holds in those objects too; beside
    `patternProperties`, which speak of names in paper form, it is left out, as they are.
    """
    named = [(data_path(name), member) for name, member in schema.get("properties", {}).items()]
    required = [data_path(name) for name in schema.get("required", ())]
    rest = {key: schema[key] for key in ("additionalProperties",) if key in schema}
    if "patternProperties" in schema:
        rest = {}
    kept = {key: value for key, value in schema.items() if key != "additionalProperties"}
    return {**kept, **_object_schema(named, required, rest)}


def _object_schema(
    named: Iterable[tuple[FieldPath, Any]], required: Iterable[FieldPath], rest: Mapping[str, Any]
) -> dict[str, Any]:
    members: dict[str, list[Any]] = {}
    inner: dict[str, tuple[list[tuple[FieldPath, Any]], list[FieldPath]]] = {}
    for (first, *others), member in named:
        if others:
            inner.setdefault(first, ([], []))[0].append((tuple(others), member))
        else:
            members.setdefault(first, []).append(member)
    for first, *others in required:
        if others:
            inner.setdefault(first, ([], []))[1].append(tuple(others))
    for prefix, (inside, needed) in inner.items():
        members.setdefault(prefix, []).append(_object_schema(inside, needed, rest))
    return {
        "properties": {
            name: all_of[0] if len(all_of) == 1 else {"allOf": all_of} for name, all_of in members.items()
        },
        "required": list(dict.fromkeys(first for first, *_ in required)),
        **rest,
    }
