"""Why a row of an upload is rejected: the words that callers match on."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """A stable word for a kind of refusal; the sentence beside it is for people."""

    JSON_INVALID = "JSON_INVALID"
    NOT_AN_OBJECT = "NOT_AN_OBJECT"
    PRIMARY_IDENTITY_MISSING = "PRIMARY_IDENTITY_MISSING"
    PRIMARY_IDENTITY_AMBIGUOUS = "PRIMARY_IDENTITY_AMBIGUOUS"
    IDENTITY_INVALID = "IDENTITY_INVALID"
    EVENT_ID_MISSING = "EVENT_ID_MISSING"
    TIMESTAMP_MISSING = "TIMESTAMP_MISSING"
    VALUE_INVALID = "VALUE_INVALID"
    NUMBER_NOT_EXACT = "NUMBER_NOT_EXACT"
    """No value of the field's type is this number: it would lose digits."""
    FIELD_TYPE_CONFLICT = "FIELD_TYPE_CONFLICT"
    RECORD_TOO_LARGE = "RECORD_TOO_LARGE"
    FILE_INVALID = "FILE_INVALID"
    """The file as a whole is not what its format says."""
    TOO_MANY_NAMESPACES = "TOO_MANY_NAMESPACES"
    FILE_UNREADABLE = "FILE_UNREADABLE"
    """Nobody knows what the file is: reading it failed in a way that is not foreseen."""
    INGEST_TOO_EXPENSIVE = "INGEST_TOO_EXPENSIVE"
    """Reading it took more time or memory than it may."""
