"""XDM schema documents as callers send them, and the rules in them that rows are held to.

Both are read in a process of their own: anything can come of them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jsonschema_rs
from jsonschema_rs import Draft6Validator, FancyRegexOptions, RegexOptions, ValidationError

from profile_export.domain.catalog.allowances import check_dataset_fields
from profile_export.domain.catalog.datasets import BUILT_IN_SCHEMAS, IdentityField, Schema
from profile_export.domain.errors import DomainError
from profile_export.domain.schemas.learning import ValueRefusedError
from profile_export.domain.schemas.types import FieldPath, dotted_path
from profile_export.domain.schemas.xdm import read_document
from profile_export.domain.schemas.xdm_places import SchemaInvalidError, schema_id

MAX_DOCUMENT_BYTES = 2**20
MOST_DIGITS = 4_300
"""How many an integer has; it takes time that grows with their square to read and write it."""
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""In JSON text; after a backslash that is escaped itself, as in a pattern, it is none."""
DRAFT = "http://json-schema.org/draft-06/schema#"


def read_documents(texts: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> tuple[Schema, ...]:
    """Read documents that may refer to one another.

    Args:
        texts: The documents, JSON text.
        known: What else they may refer to, parsed, by `$id`. Where a text has the same `$id`, the text counts.

    Returns:
        The schemas in the order of the texts. Their rules compile.

    Raises:
        SchemaInvalidError: A document is not a valid one, or two have one `$id`.
        FailedPreconditionError: A `$ref` names something unknown.
    """
    documents: dict[str, Mapping[str, Any]] = {}
    for document in map(parse_document, texts):
        if documents.setdefault(schema_id(document), document) is not document:
            raise SchemaInvalidError("/$id", "$id", f"two of the documents are '{schema_id(document)}'.")
    schemas = tuple(read_document(document, {**known, **documents}) for document in documents.values())
    for schema in schemas:
        try:
            Rules(schema.rules or "{}")
        except SchemaInvalidError as error:
            raise error.of(schema.id) from None
    return schemas


def parse_document(text: str) -> dict[str, Any]:
    """Parse one document and check it against the meta schema of draft-06.

    Raises:
        SchemaInvalidError: It is larger than `MAX_DOCUMENT_BYTES`, not JSON, has U+0000 in a text, a name twice in
            one object, an integer of more than `MOST_DIGITS` or a number that no double can hold, names another draft,
            or breaks a rule of the meta schema.
    """
    document = _parse(text)
    if not isinstance(document, dict):
        raise SchemaInvalidError("", "type", "a document is a JSON object.")
    try:
        _check(document)
    except SchemaInvalidError as error:
        raise error.of(document.get("$id")) from None
    return document


def _check(document: Mapping[str, Any]) -> None:
    draft = document.get("$schema", DRAFT)
    if draft not in (DRAFT, DRAFT.removesuffix("#")):
        raise SchemaInvalidError("/$schema", "$schema", f"{shown(draft)} is not draft-06, '{DRAFT}'.")
    try:
        jsonschema_rs.meta.validate({**document, "$schema": DRAFT})
    except jsonschema_rs.ValidationError as error:
        raise _broken(error) from None


def _parse(text: str) -> Any:
    try:
        if len(text.encode()) > MAX_DOCUMENT_BYTES:
            raise SchemaInvalidError("", "size", f"it has more than {MAX_DOCUMENT_BYTES} bytes.")
        document = json.loads(
            text,
            object_pairs_hook=_without_repetition,
            parse_int=_integer,
            parse_float=_double,
            parse_constant=_double,
        )
        json.dumps(document, ensure_ascii=False).encode()
        if _ESCAPED_NUL.search(text):
            raise SchemaInvalidError("", "json", "it holds the character U+0000, which no text may have.")
    except RecursionError:
        raise SchemaInvalidError("", "json", "it is nested too deep.") from None
    except UnicodeEncodeError:
        raise SchemaInvalidError(
            "", "json", "it holds half of a surrogate pair, which is not text."
        ) from None
    except ValueError as error:
        raise SchemaInvalidError("", "json", f"it is not JSON: {error}.") from None
    return document


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return members


def _integer(text: str) -> int:
    digits = len(text.removeprefix("-"))
    if digits > MOST_DIGITS:
        raise ValueError(f"an integer has {digits:,} digits; at most {MOST_DIGITS:,} are read")
    return int(text)


def _double(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"no double can hold {text}")
    return value


def _broken(error: jsonschema_rs.ValidationError) -> SchemaInvalidError:
    while error.kind.name == "anyOf" and isinstance(error.instance, dict):
        error = error.kind.value[0][0]  # `items` may be a schema or a list of them: an object means a schema
    steps = [str(step).replace("~", "~0").replace("/", "~1") for step in error.instance_path]
    return SchemaInvalidError(
        "".join(f"/{step}" for step in steps), rule_at(error.instance_path), f"{error.message}."
    )


UNFORESEEN = "document"
"""Stands where the refusal of a document names the rule that it breaks, if it breaks the reader."""

# What other documents name is there from the start; what the classes hold themselves comes with the next version.
_BUILT_IN = {
    schema.id: {"$id": schema.id, "title": schema.title, "type": "object"}
    for schema in BUILT_IN_SCHEMAS.values()
    if schema.id == schema.class_id
}


@dataclass(frozen=True, slots=True)
class SchemasTask:
    """Documents to read together: those of a call, of which the last is the one that `identity_fields` are for.

    `known` are registered documents that they may refer to, by `$id`.
    """

    texts: tuple[str, ...]
    known: Mapping[str, str]
    identity_fields: tuple[IdentityField, ...]


def checked_names(texts: tuple[str, ...]) -> frozenset[str]:
    """Check documents by themselves and return the ids of those that they name.

    Raises:
        SchemaInvalidError: As `parse_document`, or for whatever else reading one raises.
    """
    with _refusing_unforeseen():
        return frozenset(name for text in texts for name in _named_ids(parse_document(text)))


def named(texts: tuple[str, ...]) -> frozenset[str]:
    """Return the ids of the documents that some registered ones name."""
    with _refusing_unforeseen():
        return frozenset(name for text in texts for name in _named_ids(json.loads(text)))


def read_schemas(task: SchemasTask) -> list[Schema]:
    """Read documents that may refer to one another, in their order.

    Raises:
        SchemaInvalidError: As `read_documents`, or for whatever else reading one raises.
        FailedPreconditionError: As `read_documents`.
        TooManyError: One has more fields than a schema knows.
    """
    with _refusing_unforeseen():
        known = {schema_id: json.loads(text) for schema_id, text in task.known.items()}
        found = read_documents(task.texts, {**_BUILT_IN, **known})
        for schema in found:
            # More would only be refused where it holds others up.
            check_dataset_fields(schema.fields, f"The schema '{schema.id}'")
        *others, last = (replace(read, document=text) for read, text in zip(found, task.texts, strict=True))
        return [*others, replace(last, identity_fields=task.identity_fields)]


@contextmanager
def _refusing_unforeseen() -> Iterator[None]:
    """Tell whatever reading a document raises, a panic of an extension too, as the document's fault."""
    try:
        yield
    except (DomainError, MemoryError):
        raise
    except BaseException as error:
        raise unreadable() from error


def unreadable() -> SchemaInvalidError:
    """Return the refusal of a document that no reader gets through."""
    return SchemaInvalidError(
        "", UNFORESEEN, "it cannot be read: the reader broke down over it. Write it simpler."
    )


def _named_ids(document: Any) -> Iterator[str]:
    """List the ids of other documents in a document, perhaps repeatedly; what a `$ref` says behind `#` is left out."""
    waiting = [document]  # a document may be nested deeper than calls may
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        for name, member in value.items():
            if name == "$ref" and isinstance(member, str):
                yield member.partition("#")[0]
            elif name == "meta:extends" and isinstance(member, list):
                yield from (one for one in member if isinstance(one, str))
            else:
                waiting.append(member)


_MOST_SHOWN = 200
_MOST_LOOKED_AROUND = 1_000
"""Characters of a text that is held to a pattern with a lookaround or a reference back."""
_PATTERNS = FancyRegexOptions(backtrack_limit=100_000)
_DATA = {"enum", "const", "default", "examples"}
_NAMED = {"properties", "definitions", "patternProperties", "dependencies"}
_MISSING = "is missing, but the schema requires it"
_FORBIDDEN = "may not be there, since the schema allows no such field (additionalProperties)"


class Rules:
    """The rules that `Schema.rules` holds, ready to check rows.

    Raises:
        SchemaInvalidError: A pattern among them cannot be compiled.
    """

    def __init__(self, text: str) -> None:
        """Compile the rules, JSON text."""
        try:
            self._validator = Draft6Validator(
                _bounded(json.loads(text)), validate_formats=True, offline=True, pattern_options=_PATTERNS
            )
        except ValidationError as error:
            raise SchemaInvalidError(
                _field_of(error.instance_path),
                rule_at(error.instance_path),
                f"{shown(error.instance)} is not valid.",
            ) from None

    def check(self, record: Mapping[str, Any]) -> None:
        """Check one record.

        Args:
            record: It as JSON has it, so dates and instants as text; numbers may be `Decimal`. It is left as it is.

        Raises:
            ValueRefusedError: It breaks a rule; says which, and where.
        """
        try:
            if self._validator.is_valid(record):
                return
            self._validator.validate(record)  # goes no further than what it raises
        except UnicodeEncodeError:
            raise ValueRefusedError((), "holds half of a surrogate pair, which is not text") from None
        except ValidationError as error:
            path, complaint = _told(error)
            raise ValueRefusedError(path, complaint) from None


def _bounded(rules: dict[str, Any]) -> dict[str, Any]:
    """Let patterns that take more than linear time, those that look around or back, meet short text only. In place."""
    waiting: list[Any] = [rules]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            pattern = part.get("pattern")
            if isinstance(pattern, str) and not _is_linear(pattern):
                part["maxLength"] = min(part.get("maxLength", _MOST_LOOKED_AROUND), _MOST_LOOKED_AROUND)
            waiting += [member for name, member in part.items() if name not in _DATA]
    return rules


def _is_linear(pattern: str) -> bool:
    try:
        Draft6Validator({"pattern": pattern}, pattern_options=RegexOptions())
    except ValidationError:
        return False
    return True


def rule_at(pointer: Sequence[str | int]) -> str:
    """Return the keyword that a path into a schema leads to or through last; empty for the schema itself."""
    rule, is_name = "", False
    for step in pointer:
        if is_name or isinstance(step, int):
            is_name = False
            continue
        rule, is_name = step, step in _NAMED
    return rule


def shown(value: object) -> str:
    """Write a value for a message, shortened where it is long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _field_of(pointer: Sequence[str | int]) -> str:
    """Return the field that a path into rules speaks of."""
    path: list[str] = []
    steps = iter(pointer)
    for step in steps:
        if step == "properties":
            path.append(str(next(steps)))
        elif step in ("items", "additionalProperties"):
            path.append("[]" if step == "items" else "*")
    return dotted_path(tuple(path))


def _told(error: ValidationError) -> tuple[FieldPath, str]:
    """Return where a record breaks a rule, and the complaint."""
    path = tuple("[]" if isinstance(step, int) else step for step in error.instance_path)
    rule, limit = error.kind.name, error.kind.value
    if _starts(error, "nothing"):
        return path, _FORBIDDEN
    if rule == "anyOf" and _is_optional(error):
        return _told(limit[1][0])
    if rule == "required":
        return (*path, limit), _MISSING
    if _starts(error, "value") or error.instance is None:
        return path, _MISSING
    if rule in ("anyOf", "oneOf", "not", "uniqueItems"):
        return path, f"does not satisfy the rule {rule} of the schema"
    return path, f"is {shown(error.instance)}, but the schema says {rule}: {shown(limit)}"


def _is_optional(error: ValidationError) -> bool:
    """Whether this is the choice between no value and what a value has to satisfy."""
    first = error.kind.value[0]
    return bool(first) and _starts(first[0], "nothing") and first[0].instance_path == error.instance_path


def _starts(error: ValidationError, definition: str) -> bool:
    return error.schema_path[:2] == ["definitions", definition]
