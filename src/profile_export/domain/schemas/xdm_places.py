"""XDM documents taken apart: what they say of each place in a row, `$ref` and `allOf` resolved.

`xdm:` is dropped, `@id` is `_id`, and any other prefix becomes an object: `schema:latitude` is `_schema.latitude`,
`https://ns.adobe.com/xdm/channels/email` is `_channels.email`. A name without a prefix stays as it is.

Documents are JSON Schema, draft-06, and have been checked against its meta schema before they come here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urljoin

from profile_export.domain.errors import FailedPreconditionError, InvalidArgumentError
from profile_export.domain.schemas.learning import (
    MAX_DEPTH,
    MAX_NAMES,
    RESERVED,
    ValueRefusedError,
    check_name,
)
from profile_export.domain.schemas.types import (
    ArrayType,
    FieldPath,
    FieldType,
    MapType,
    ObjectType,
    dotted_path,
    type_at,
)

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


MAX_SCHEMAS = 50_000
"""How many schemas a document may consist of, counted each time that a `$ref` leads to one."""
MAX_ID = 1_000
"""How many characters the `$id` of a document may have."""
MAX_NESTING = 200
"""How deep schemas may lie in one another, each `$ref`, `allOf` and property a level."""

_INDEX = re.compile(r"[0-9]{1,9}")
_CHOICES = ("anyOf", "oneOf", "not")


class SchemaInvalidError(InvalidArgumentError):
    """A document that no rows can follow.

    `path` is a field path as in data, or a JSON pointer into the document (empty or beginning with `/`) where its
    text is wrong; `rule` the keyword that is at fault.
    """

    def __init__(self, path: FieldPath | str, rule: str, complaint: str, document_id: str = "") -> None:
        path = path if isinstance(path, str) else dotted_path(path)
        document = f"The schema document '{document_id}'" if document_id else "The schema document"
        place = f" at '{path}'" if path else ""
        super().__init__(
            "SCHEMA_INVALID",
            f"{document} is wrong{place} ({rule}): {complaint}",
            metadata={"path": path, "rule": rule},
        )
        self.path, self.rule, self.complaint = path, rule, complaint

    def of(self, document_id: object) -> SchemaInvalidError:
        """Return the same error, naming the document."""
        return SchemaInvalidError(self.path, self.rule, self.complaint, str(document_id or ""))


def ref_not_found(ref: str) -> FailedPreconditionError:
    """Return the refusal of a `$ref` that leads nowhere."""
    return FailedPreconditionError(
        "SCHEMA_REF_NOT_FOUND",
        f"The $ref '{ref}' names nothing that is known. Register that document first, or send it along.",
        metadata={"ref": ref},
    )


@dataclass(frozen=True, slots=True)
class Place:
    """All that holds at one place in a row.

    Attributes:
        path: Where it is, as in data; `*` is any key and `[]` any item.
        claims: The schemas that hold there together, without `$ref`; what they say of other places is in the rest.
        members: The places that have a name in an object there.
        rest: The places that have any other name; None if nothing is said of them.
        item: The items of an array there; None if nothing is said of them.
        choices: `anyOf`, `oneOf` and `not`, each with the branches that it chooses from.
        forbidden: Nothing may stand there.
    """

    path: FieldPath
    claims: Sequence[Mapping[str, Any]]
    members: Mapping[str, Place]
    rest: Place | None
    item: Place | None
    choices: Sequence[tuple[str, Sequence[Place]]]
    forbidden: bool


@dataclass(frozen=True, slots=True)
class _Claim:
    """A schema, the document that its references start from, and the references and levels that led to it."""

    schema: Any
    document: Mapping[str, Any]
    through: tuple[tuple[str, str], ...]
    depth: int = 0

    def part(self, schema: Any) -> _Claim:
        return _Claim(schema, self.document, self.through, self.depth + 1)


def read_place(document: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]) -> Place:
    """Take a document apart; `documents` are all that references may lead to, by `$id`, itself among them.

    Columns of the system and `timeSeriesEvents` are left out at its root.

    Raises:
        SchemaInvalidError: A name cannot be one of a field, `$ref` leads back to itself (rows have a finite set of
            columns), or the document is too large or too deep.
        FailedPreconditionError: A `$ref` names something unknown.
    """
    return _Reader(documents).place([_Claim(document, document, ((schema_id(document), ""),))], ())


def follow(
    ref: str, document: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]
) -> tuple[Mapping[str, Any], tuple[str, str]]:
    """Return the document that a reference leads to, and its target as (`$id`, JSON pointer); else `ref_not_found`."""
    base, _, pointer = ref.partition("#")
    own_id = schema_id(document)
    for found_id in (base, urljoin(own_id, base)):
        if found_id in ("", own_id):
            return document, (own_id, unquote(pointer))
        if found_id in documents:
            return documents[found_id], (found_id, unquote(pointer))
    raise ref_not_found(ref)


def schema_id(document: Mapping[str, Any]) -> str:
    """Return the `$id` of a document without an empty fragment; SchemaInvalidError if it is missing or too long."""
    found = document.get("$id")
    if not isinstance(found, str) or not found.rstrip("#"):
        raise SchemaInvalidError("/$id", "$id", "a document needs the URI that it is known by.")
    if len(found) > MAX_ID:
        raise SchemaInvalidError("/$id", "$id", f"the URI has more than {MAX_ID} characters.")
    return found.rstrip("#")


class _Reader:
    """One reading of a document: where references lead, and how much has been read."""

    def __init__(self, documents: Mapping[str, Mapping[str, Any]]) -> None:
        self._documents = documents
        self._read = 0

    def place(self, claims: Iterable[_Claim], path: FieldPath) -> Place:
        if len(path) > MAX_DEPTH:
            raise SchemaInvalidError(path[:3], "properties", f"fields are nested deeper than {MAX_DEPTH}.")
        flat = self._flat(claims, path)
        named = [claim for claim in flat if claim.schema is not False]
        rest = [
            claim.part(claim.schema["additionalProperties"])
            for claim in named
            if "additionalProperties" in claim.schema
        ]
        items = [
            claim.part(claim.schema["items"]) for claim in named if _is_schema(claim.schema.get("items"))
        ]
        return Place(
            path=path,
            claims=[claim.schema for claim in named],
            members=self._members(named, path),
            rest=self.place(rest, (*path, "*")) if rest else None,
            item=self.place(items, (*path, "[]")) if items else None,
            choices=[
                (
                    keyword,
                    [self.place([claim.part(branch)], path) for branch in _branches(claim.schema[keyword])],
                )
                for claim in named
                for keyword in _CHOICES
                if keyword in claim.schema
            ],
            forbidden=len(named) < len(flat),
        )

    def _flat(self, claims: Iterable[_Claim], path: FieldPath) -> list[_Claim]:
        """Return the claims with `$ref` and `allOf` resolved: the named ones, and those that forbid everything."""
        flat: list[_Claim] = []
        waiting = list(claims)[::-1]
        while waiting:
            claim = waiting.pop()
            self._count(claim, path)
            if claim.schema is False:
                flat.append(claim)
            elif claim.schema is True:
                continue
            elif "$ref" in claim.schema:  # what stands beside it does not count, says draft-06
                waiting.append(self._target(claim, claim.schema["$ref"], path))
            else:
                flat.append(replace(claim, schema=with_data_names(claim.schema)))
                waiting += [claim.part(schema) for schema in claim.schema.get("allOf", ())][::-1]
        return flat

    def _count(self, claim: _Claim, path: FieldPath) -> None:
        self._read += 1
        if self._read > MAX_SCHEMAS:
            raise SchemaInvalidError("", "$ref", f"it consists of more than {MAX_SCHEMAS} schemas.")
        if claim.depth > MAX_NESTING:
            raise SchemaInvalidError(path, "allOf", f"schemas are nested deeper than {MAX_NESTING} levels.")

    def _target(self, claim: _Claim, ref: str, path: FieldPath) -> _Claim:
        document, target = follow(ref, claim.document, self._documents)
        if target in claim.through:
            raise SchemaInvalidError(
                path, "$ref", f"'{ref}' leads back to itself, but a row has a finite set of columns."
            )
        return _Claim(_pointed(document, target[1], ref), document, (*claim.through, target), claim.depth + 1)

    def _members(self, named: Sequence[_Claim], path: FieldPath) -> dict[str, Place]:
        names = dict.fromkeys(
            name for claim in named for name in (*claim.schema["properties"], *claim.schema["required"])
        )
        if not path:
            names = dict.fromkeys(name for name in names if name.casefold() not in RESERVED)
        _check_names(names, path)
        said = {name: [claim.part(_said_of(name, claim.schema)) for claim in named] for name in names}
        return {name: self.place(said[name], (*path, name)) for name in _standing(said, path)}


def _said_of(name: str, schema: Mapping[str, Any]) -> Mapping[str, Any] | bool:
    said: Mapping[str, Any] | bool = schema["properties"].get(name, schema.get("additionalProperties", True))
    return said


def _is_schema(value: object) -> bool:
    return isinstance(value, Mapping | bool)


def _branches(value: Any) -> Sequence[Any]:
    return [value] if _is_schema(value) else value


def _pointed(document: Mapping[str, Any], pointer: str, ref: str) -> Any:
    """Follow a JSON pointer."""
    found: Any = document
    first, *steps = pointer.split("/")
    for step in steps:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and _INDEX.fullmatch(name) and int(name) < len(found):
            found = found[int(name)]
        else:
            found = found.get(name) if isinstance(found, Mapping) else None
    if first or not _is_schema(found):
        raise ref_not_found(ref)
    return found


def _check_names(names: Collection[str], path: FieldPath) -> None:
    """Hold names to what ingestion asks of them: once a field is known, nobody looks at its name again."""
    if len(names) > MAX_NAMES:
        raise SchemaInvalidError(path, "properties", f"an object has more than {MAX_NAMES} names.")
    for name in names:
        try:
            check_name(name, {}, path, {})
        except ValueRefusedError as refused:
            raise SchemaInvalidError((*path, name), "properties", refused.reason) from None


def _standing(said: Mapping[str, Sequence[_Claim]], path: FieldPath) -> list[str]:
    """Return the names that are fields. Of those that differ in case alone one can be: the one not deprecated."""
    alike: dict[str, list[str]] = {}
    for name in said:
        alike.setdefault(name.casefold(), []).append(name)
    standing = []
    for names in alike.values():
        live = (
            names if len(names) == 1 else [name for name in names if not any(map(_is_deprecated, said[name]))]
        )
        if len(live) != 1:
            raise SchemaInvalidError(
                (*path, names[1]), "properties", f"{' and '.join(names)} differ in case alone."
            )
        standing += live
    return standing


def _is_deprecated(claim: _Claim) -> bool:
    return isinstance(claim.schema, Mapping) and claim.schema.get("meta:status") == "deprecated"
