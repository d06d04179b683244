"""Rules of a schema, checked row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema_rs import Draft6Validator, FancyRegexOptions, RegexOptions, ValidationError

from profile_export.domain.schemas.learning import ValueRefusedError
from profile_export.domain.schemas.types import FieldPath, dotted_path
from profile_export.domain.schemas.xdm_places import SchemaInvalidError

_MOST_SHOWN = 200
_MOST_LOOKED_AROUND = 1_000
"""Characters of a text that is held to a pattern with a lookaround or a reference back."""
_PATTERNS = FancyRegexOptions(backtrack_limit=100_000)
_DATA = {"enum", "const", "default", "examples"}
_NAMED = {"properties", "definitions", "patternProperties", "dependencies"}
_MISSING = "is missing, but the schema requires it"
_FORBIDDEN = "may not be there, since the schema allows no such field (additionalProperties)"


class Rules:
    """The rules that `XdmSchema.rules` holds, ready to check rows.

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
