"""Fields, their types and identities: as typed in options, and as shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import typer

from profile_export.cli.terminal.output import one_line, print_rows
from profile_export.client import (
    DatasetKind,
    DecimalType,
    Field,
    FieldDeclaration,
    FieldType,
    IdentityField,
    ScalarType,
)

_DECIMAL = re.compile(r"decimal\((\d{1,2}),(\d{1,2})\)")
_SCALARS = {
    name.removeprefix("SCALAR_TYPE_").lower(): value
    for name, value in ScalarType.items()
    if value != ScalarType.SCALAR_TYPE_UNSPECIFIED
}
_WORDS = {value: word for word, value in _SCALARS.items()}

Identities = Annotated[
    list[str] | None,
    typer.Option(
        "--identity", metavar="PATH=NAMESPACE", help="A field that holds an identity. May be given again."
    ),
]
Primary = Annotated[
    str | None,
    typer.Option("--primary", metavar="PATH=NAMESPACE", help="The field that holds the primary identity."),
]
Declared = Annotated[
    list[str] | None,
    typer.Option(
        "--declare",
        metavar="PATH=TYPE",
        help=f"Type of a field: {', '.join(_SCALARS)} or decimal(PRECISION,SCALE). May be given again.",
    ),
]
Tagged = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="KEY=VALUE", help="A tag. The same key again: one more value."),
]


def identity_fields(identities: Sequence[str] | None, primary: str | None) -> list[IdentityField]:
    """Read the options --identity and --primary."""
    fields = [_identity("--identity", one, primary=False) for one in identities or ()]
    if primary is not None:
        fields.append(_identity("--primary", primary, primary=True))
    return fields


def declared_fields(declared: Sequence[str] | None) -> list[FieldDeclaration]:
    """Read the option --declare."""
    pairs = [_pair("--declare", one, "orderTotal=decimal(12,2)") for one in declared or ()]
    return [FieldDeclaration(path=path, type=_type(word)) for path, word in pairs]


def tag_values(tags: Sequence[str] | None) -> dict[str, list[str]]:
    """Read the option --tag."""
    values: dict[str, list[str]] = {}
    for one in tags or ():
        key, value = _pair("--tag", one, "unifiedProfile=enabled:false")
        values.setdefault(key, []).append(value)
    return values


def print_fields(fields: Iterable[Field]) -> None:
    """Write fields as a tree, each object's fields indented below it."""
    print_rows(("field", "type"), _tree(fields, 0), empty="No fields yet: they come with the first batch.")


def kind_word(kind: DatasetKind.ValueType) -> str:
    """Return the word for what rows are; that of a schema which no dataset can have is `component`."""
    if kind == DatasetKind.DATASET_KIND_UNSPECIFIED:
        return "component"
    return DatasetKind.Name(kind).removeprefix("DATASET_KIND_").lower()


def identity_lines(fields: Iterable[IdentityField]) -> str:
    """Return identity fields as they are typed, one on a line."""
    return "\n".join(
        f"{field.path}={field.namespace}{' (primary)' if field.primary else ''}" for field in fields
    )


def _tree(fields: Iterable[Field], depth: int) -> Iterator[tuple[str, str]]:
    for field in fields:
        word, below = _described(field.type)
        yield "  " * depth + one_line(field.name), word
        yield from _tree(below, depth + 1)


def _described(kind: FieldType) -> tuple[str, Sequence[Field]]:
    """Return the word for a type, and the fields of the object in it."""
    match kind.WhichOneof("kind"):
        case "object":
            return "object", kind.object.fields
        case "array":
            word, below = _described(kind.array.item)
            return f"array of {word}", below
        case "map":
            word, below = _described(kind.map.value)
            return f"map of {word}", below
        case "decimal":
            return f"decimal({kind.decimal.precision},{kind.decimal.scale})", ()
        case None:
            return "(nested too deep to be shown)", ()
        case _:
            return _WORDS.get(kind.scalar, ScalarType.Name(kind.scalar)), ()


def _type(word: str) -> FieldType:
    if found := _DECIMAL.fullmatch(word.replace(" ", "")):
        return FieldType(decimal=DecimalType(precision=int(found[1]), scale=int(found[2])))
    if word not in _SCALARS:
        raise typer.BadParameter(
            f"--declare: {word!r} is no type: write {', '.join(_SCALARS)} or decimal(12,2)."
        )
    return FieldType(scalar=_SCALARS[word])


def _identity(option: str, text: str, *, primary: bool) -> IdentityField:
    path, namespace = _pair(option, text, "personalEmail.address=Email")
    return IdentityField(path=path, namespace=namespace, primary=primary)


def _pair(option: str, text: str, example: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise typer.BadParameter(f"{option} {text!r} needs a name, `=` and a value, such as {example}.")
    return left, right
