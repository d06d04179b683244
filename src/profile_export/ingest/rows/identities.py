"""Whose a row is: the identities that it states, its primary one, and the namespaces that a batch uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from profile_export.domain.catalog.allowances import MOST_BATCH_SPELLINGS
from profile_export.domain.catalog.datasets import IdentityField
from profile_export.domain.errors import Reason
from profile_export.domain.merging.identity import IdentityKey, fold_namespace, key_of
from profile_export.domain.schemas.learning import ValueRefusedError, check_value
from profile_export.domain.schemas.types import (
    BOOLEAN,
    IDENTITY_MAP,
    IDENTITY_MEMBERS,
    SEGMENT_MEMBERSHIP,
    TEXT,
    FieldPath,
    TypeConflictError,
)
from profile_export.ingest.rejected import FileRefusedError
from profile_export.ingest.task import NamespacesSent, NamespaceUse

AUTHENTICATED_STATES = ("ambiguous", "authenticated", "loggedOut")
EMPTY_ID = "is an empty text, which is no identity"
NO_PRIMARY = (
    "has no primary identity: none is marked in its identityMap, nor does a declared primary field hold one"
)
_ABSENT: tuple[object, ...] = (None, {})


class Claim(IntEnum):
    """What makes an identity a row's primary one (S3); the greater wins."""

    NONE = 0
    DECLARED = 1
    """It stands in the declared primary field."""
    MARKED = 2
    """It is marked in the `identityMap`."""


class Mention(NamedTuple):
    """One place of a row where an identity stands; `state` is None where absent or `ambiguous` (S6)."""

    namespace: str
    id: str
    state: str | None
    claim: Claim


class Stated(NamedTuple):
    """An identity of a row as the system columns hold it."""

    namespace: str
    id: str
    state: str | None
    key_high: int
    key_low: int


class RowIdentities(NamedTuple):
    """The identities of one row, each once."""

    primary: Stated
    links: list[Stated]


def check_identity_map(value: object) -> tuple[dict[str, Any] | None, list[Mention]]:
    """Bring a record's `identityMap` into its stored form and list what it mentions.

    Args:
        value: The map as sent: namespaces to lists of items. Null members of an item count as absent.

    Returns:
        The map without empty namespaces, None if nothing is left, and its mentions, ordered by namespace in UTF-8.

    Raises:
        ValueRefusedError: An item is not an identity.
        TypeConflictError: Something in it has another JSON type.
    """
    if value is None:
        return None, []
    if not isinstance(value, dict):
        raise TypeConflictError((IDENTITY_MAP,), "map", _kind(value))
    kept: dict[str, Any] = {}
    mentions: list[Mention] = []
    for namespace in sorted(value):
        items = value[namespace]
        path = (IDENTITY_MAP, namespace)
        if items is not None and not isinstance(items, list):
            raise TypeConflictError(path, "array", _kind(items))
        if not items:
            continue
        _check_namespace(namespace)
        kept[namespace] = checked = [_item(item, (*path, "[]")) for item in items]
        for item in checked:
            state = item.get("authenticatedState")
            mentions.append(
                Mention(
                    namespace,
                    item["id"],
                    None if state == "ambiguous" else state,
                    Claim.MARKED if item.get("primary") else Claim.NONE,
                )
            )
    return {namespace: kept[namespace] for namespace in value if namespace in kept} or None, mentions


def claim_of(declared: IdentityField) -> Claim:
    """Return what standing in a declared identity field claims."""
    return Claim.DECLARED if declared.primary else Claim.NONE


def identity_text(value: object, path: FieldPath) -> str | None:
    """Return an identity's id (S1): text as it is, an integer in decimal; None where it is absent.

    Raises:
        ValueRefusedError: It is empty, or neither text nor an integer.
    """
    if type(value) is str and value and value.isascii():  # most are
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value == {}:
        return None
    if not isinstance(value, str):
        raise _invalid(path, f"is {_kind(value)}, but an identity is text or an integer")
    if not value:
        raise _invalid(path, EMPTY_ID)
    check_value(value, TEXT, path, set())
    return value


def resolve(mentions: Sequence[Mention]) -> RowIdentities:
    """Find a row's identities, each once however its namespace is spelled, and its primary one (S3).

    Several places of one identity are one: its state is the first that is stated, its spelling the smallest in UTF-8.

    Args:
        mentions: All places where one stands; at most one is DECLARED.

    Raises:
        ValueRefusedError: There is no primary identity, or two are marked.
    """
    if len(mentions) == 1 and mentions[0].claim:  # most rows
        [(namespace, text, state, _)] = mentions
        return RowIdentities(Stated(namespace, text, state, *key_of(namespace, text)), [])
    found: dict[IdentityKey, Stated] = {}
    strongest = Claim.NONE
    chosen: IdentityKey | None = None
    for namespace, text, state, claim in mentions:
        one = key_of(namespace, text)
        known = found.get(one)
        if known is None:
            found[one] = Stated(namespace, text, state, *one)
        else:
            found[one] = known._replace(namespace=min(namespace, known.namespace), state=known.state or state)
        if claim > strongest:
            strongest, chosen = claim, one
        elif claim is Claim.MARKED and one != chosen:
            raise ValueRefusedError(
                (),
                f"has more than one primary identity, '{text}' of '{namespace}' among them",
                Reason.PRIMARY_IDENTITY_AMBIGUOUS,
            )
    if chosen is None:
        raise ValueRefusedError((), NO_PRIMARY, Reason.PRIMARY_IDENTITY_MISSING)
    return RowIdentities(found.pop(chosen), list(found.values()))


class NamespaceTally:
    """Collects the namespaces of a batch (S2), row by row in their order."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, int]] = {}
        self._spellings: set[str] = set()

    def see(self, spelling: str, row: int) -> None:
        """Note a namespace of a row, counted from 0.

        Raises:
            FileRefusedError: There are more than any batch can have.
        """
        if spelling in self._spellings:
            return
        self._spellings.add(spelling)
        if len(self._spellings) > MOST_BATCH_SPELLINGS:
            raise FileRefusedError(
                f"The file names more than {MOST_BATCH_SPELLINGS:,} namespaces: send what differs from row to row as "
                "the id.",
                reason=Reason.TOO_MANY_NAMESPACES,
            )
        folded = fold_namespace(spelling)
        known, first_row = self._first.setdefault(folded, (spelling, row))
        if first_row == row and spelling < known:
            self._first[folded] = spelling, row

    def sent(self) -> NamespacesSent:
        """Return what was seen so far."""
        uses = tuple(NamespaceUse(folded, spelling, row) for folded, (spelling, row) in self._first.items())
        return NamespacesSent(uses, frozenset(self._spellings))


def _item(item: object, path: FieldPath) -> dict[str, Any]:
    if item is None:
        item = {}
    if not isinstance(item, dict):
        raise TypeConflictError(path, "object", _kind(item))
    kept: Mapping[str, Any] = {name: member for name, member in item.items() if member not in _ABSENT}
    identity_id = identity_text(kept.get("id"), (*path, "id"))
    if identity_id is None:
        raise _invalid(path, "has no id")
    for name, member in kept.items():
        inside = (*path, name)
        if name not in IDENTITY_MEMBERS:
            raise _invalid(inside, f"is unknown: an identity has {', '.join(IDENTITY_MEMBERS)}")
        if name == "primary" and not isinstance(member, bool):
            raise TypeConflictError(inside, BOOLEAN, _kind(member))
        if name == "authenticatedState" and member not in AUTHENTICATED_STATES:
            raise _invalid(
                inside, f"must be one of {', '.join(AUTHENTICATED_STATES)}, not {str(member)[:40]!r}"
            )
    return {**kept, "id": identity_id}


@lru_cache(1024)  # what is sound is remembered; an exception is not
def _check_namespace(namespace: str) -> None:
    # A key is computed of namespace, NUL and id: with a NUL inside, two identities could share one.
    if not namespace or "\0" in namespace:
        raise _invalid((IDENTITY_MAP, namespace), "has an empty namespace or one with a NUL character")
    check_value(namespace, TEXT, (IDENTITY_MAP, ascii(namespace)), set())


def check_segment_namespaces(namespaces: Iterable[str]) -> None:
    """Refuse a namespace that not every store can keep; they are map keys that have been checked.

    Raises:
        ValueRefusedError: One has a NUL character.
    """
    for namespace in namespaces:
        if "\0" in namespace:
            raise segment_namespace_refused(namespace)


def segment_namespace_refused(namespace: str) -> ValueRefusedError:
    """Return the refusal of a namespace with a NUL character."""
    return ValueRefusedError((SEGMENT_MEMBERSHIP, ascii(namespace)), "has a NUL character in its namespace")


def _invalid(path: FieldPath, complaint: str) -> ValueRefusedError:
    return ValueRefusedError(path, complaint, Reason.IDENTITY_INVALID)


def _kind(value: object) -> str:
    match value:
        case str():
            return "string"
        case bool():
            return "boolean"
        case dict():
            return "object"
        case list():
            return "array"
        case int() | float():
            return "double"
    return type(value).__name__
