"""Schemas: register them, look them up. Fields, their types and identities: as typed in options, and as shown."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from profile_export.cli.terminal.cells import word
from profile_export.cli.terminal.command import command, no, version_number
from profile_export.cli.terminal.output import print_facts, print_id, print_rows
from profile_export.client import (
    ArrayType,
    Client,
    CreateSchemaResponse,
    Dataset,
    DatasetKind,
    DecimalType,
    Field,
    FieldDeclaration,
    FieldType,
    IdentityField,
    MapType,
    ObjectType,
    ScalarType,
    Schema,
    UnionSchema,
)

group = typer.Typer(no_args_is_help=True, help="Schemas: what rows are, as XDM JSON Schema documents.")


_DECIMAL = re.compile(r"decimal\((\d{1,2}),(\d{1,2})\)")
_SCALARS = {word(ScalarType, value).lower(): value for value in ScalarType.values() if value}

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
        help=f"Type of a field: {', '.join(_SCALARS)} or decimal(PRECISION,SCALE). 'tags[]' is what an array holds, "
        "'orders[].price' a field of the objects in one, 'points.*' what a map holds. May be given again.",
    ),
]
Tagged = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="KEY=VALUE", help="A tag. The same key again: one more value."),
]


@command(group, "register", lambda answer: print_id(answer.schema))
async def register(
    client: Client,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="The schema and documents that it names by $ref, in any order.",
        ),
    ],
    identity: Identities = None,
    primary: Primary = None,
) -> CreateSchemaResponse:
    """Register a schema and the documents that it names, all or none, and print its id.

    The schema is the one that none of the others names. What is registered already need not be sent again; a document
    that only adds fields becomes the next version.

    Example: `profile-export schemas register loyalty.json address.json --primary loyaltyId=Loyalty`
    """
    documents = {path: _document(path) for path in files}
    schema = _unnamed(documents)
    return await client.create_schema(
        schema.read_text("utf-8"),
        referenced=[path.read_text("utf-8") for path in documents if path != schema],
        identities=identity_fields(identity, primary),
    )


def _show_all(schemas: list[Schema]) -> None:
    rows = [
        (
            schema.id,
            schema.version,
            kind_word(schema.kind),
            schema.title + (" (built in)" if schema.built_in else ""),
        )
        for schema in schemas
    ]
    print_rows(("id", "version", "kind", "title"), rows, empty=no("schemas"), free=("title",))


@command(group, "list", _show_all)
async def list_(client: Client) -> list[Schema]:
    """List the newest version of every schema, the built-in ones included.

    Example: `profile-export schemas list`
    """
    return await client.list_schemas()


def _show(schema: Schema) -> None:
    print_facts(
        [
            ("schema", schema.id),
            ("title", schema.title or None),
            ("kind", kind_word(schema.kind)),
            ("version", str(schema.version)),
            ("class", schema.class_id or None),
            ("identities", identity_lines(schema.identity_fields) or None),
            ("registered", "built in" if schema.built_in else schema.create_time.ToDatetime()),
        ]
    )
    typer.echo()
    print_fields(schema.fields)


@command(group, "show", _show)
async def show(
    client: Client,
    schema_id: Annotated[str, typer.Argument(metavar="ID", help="The $id of the schema.")],
    version: Annotated[
        int | None,
        typer.Option(parser=version_number, metavar="N", help="Which version. Default: the newest."),
    ] = None,
) -> Schema:
    """Show one schema: its fields as a tree, and which of them hold identities.

    Example: `profile-export schemas show https://ns.adobe.com/xdm/context/profile`
    """
    return await client.get_schema(schema_id, version)


def _show_union(schema: UnionSchema) -> None:
    print_facts([("schema", schema.schema_name), ("datasets", list(schema.dataset_ids) or "none")])
    typer.echo()
    print_fields(schema.fields)


@command(group, "union", _show_union)
async def union(
    client: Client,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The class: _xdm.context.profile or _xdm.context.experienceevent."
        ),
    ],
) -> UnionSchema:
    """Show the union schema of a class: every field that some source dataset of it has.

    Example: `profile-export schemas union _xdm.context.profile`
    """
    return await client.get_union_schema(name)


def _document(path: Path) -> Mapping[str, Any]:
    try:
        # What numbers are worth is for the server to say.
        document = json.loads(path.read_text("utf-8"), parse_int=str)
    except RecursionError:
        raise typer.BadParameter(f"{path} is nested too deep.") from None
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}.") from None
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{path} is no schema: it holds no JSON object.")
    return document


def _unnamed(documents: Mapping[Path, Mapping[str, Any]]) -> Path:
    """Return the one document that none of the others names."""
    named = {one for document in documents.values() for one in _named_by(document)}
    unnamed = [path for path, document in documents.items() if document.get("$id") not in named]
    if len(unnamed) != 1:
        paths = ", ".join(str(path) for path in unnamed or documents)
        raise typer.BadParameter(
            f"Which of {paths} is the schema? Register one schema at a time, with the documents that it names."
        )
    return unnamed[0]


def _named_by(document: Mapping[str, Any]) -> Iterator[str]:
    """List the ids that a document refers to."""
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                yield reference.partition("#")[0]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


# --- Fields, their types and identities ---


def identity_fields(identities: Sequence[str] | None, primary: str | None) -> list[IdentityField]:
    """Read the options --identity and --primary."""
    fields = [_identity("--identity", one, primary=False) for one in identities or ()]
    if primary is not None:
        fields.append(_identity("--primary", primary, primary=True))
    return fields


def declared_fields(declared: Sequence[str] | None) -> list[FieldDeclaration]:
    """Read the option --declare, whose paths lead into arrays and maps as those in messages do."""
    found: dict[str, FieldType] = {}
    for one in declared or ():
        path, text = _pair("--declare", one, "orderTotal=decimal(12,2)")
        field, steps = _way(path)
        if not field or not all(steps):
            raise typer.BadParameter(
                f"--declare {path!r} is no path, such as orders[].price, or points.* for a map."
            )
        kind = _around(_type(text), steps)
        found[field] = _merged(path, found[field], kind) if field in found else kind
    return [FieldDeclaration(path=path, type=kind) for path, kind in found.items()]


def is_plain_path(path: str) -> bool:
    """Whether --declare takes a path for names alone, which lead into no array and no map."""
    return not _way(path)[1]


def _way(path: str) -> tuple[str, list[str]]:
    """Return the field at the beginning of a path, and the steps from there.

    A step is `[]` into an array, `*` into a map, or a name in an object.
    """
    steps: list[str] = []
    for part in path.split("."):
        name = part
        while name.endswith("[]"):
            name = name.removesuffix("[]")
        steps += [name, *["[]"] * ((len(part) - len(name)) // 2)]
    inside = next((place for place, step in enumerate(steps) if step in {"[]", "*"}), len(steps))
    return ".".join(steps[:inside]), steps[inside:]


def _around(kind: FieldType, steps: Sequence[str]) -> FieldType:
    """Return the type that holds another one behind the steps."""
    for step in reversed(steps):
        if step == "[]":
            kind = FieldType(array=ArrayType(item=kind))
        elif step == "*":
            kind = FieldType(map=MapType(value=kind))
        else:
            kind = FieldType(object=ObjectType(fields=[Field(name=step, type=kind)]))
    return kind


def _merged(path: str, one: FieldType, other: FieldType) -> FieldType:
    """Return the type with all that two declare of the same field."""
    match one.WhichOneof("kind"), other.WhichOneof("kind"):
        case "array", "array":
            return FieldType(array=ArrayType(item=_merged(path, one.array.item, other.array.item)))
        case "map", "map":
            return FieldType(map=MapType(value=_merged(path, one.map.value, other.map.value)))
        case "object", "object":
            members = {field.name: field.type for field in one.object.fields}
            for field in other.object.fields:
                there = members.get(field.name)
                members[field.name] = _merged(path, there, field.type) if there else field.type
            return FieldType(
                object=ObjectType(fields=[Field(name=name, type=kind) for name, kind in members.items()])
            )
    if one != other:
        raise typer.BadParameter(f"--declare says two types of {path!r}.")
    return one


def tag_values(tags: Sequence[str] | None) -> dict[str, list[str]]:
    """Read the option --tag."""
    values: dict[str, list[str]] = {}
    for one in tags or ():
        key, value = _pair("--tag", one, "unifiedProfile=enabled:false")
        values.setdefault(key, []).append(value)
    return values


def print_fields(fields: Iterable[Field]) -> None:
    """Write fields as a tree, each object's fields indented below it."""
    print_rows(
        ("field", "type"),
        _tree(fields, 0),
        empty="No fields yet: they come with the first batch.",
        free=("type",),
    )


def known_paths(dataset: Dataset) -> set[str]:
    """Return the paths of the fields whose types a dataset knows, those that hold identities included."""
    known = {identity.path for identity in dataset.identity_fields}
    known |= {declared.path for declared in dataset.declared_fields}
    waiting = [(field.name, field.type) for field in dataset.fields]
    while waiting:
        path, kind = waiting.pop()
        if kind.HasField("object"):
            waiting += [(f"{path}.{field.name}", field.type) for field in kind.object.fields]
        else:
            known.add(path)
    return known


def kind_word(kind: DatasetKind.ValueType) -> str:
    """Return the word for what rows are; that of a schema which no dataset can have is `component`."""
    return word(DatasetKind, kind).lower() if kind else "component"


def identity_lines(fields: Iterable[IdentityField]) -> list[str]:
    """Return identity fields as they are typed."""
    return [f"{field.path}={field.namespace}{' (primary)' if field.primary else ''}" for field in fields]


def _tree(fields: Iterable[Field], depth: int) -> Iterator[tuple[str, str]]:
    for field in fields:
        described, below = _described(field.type)
        yield "  " * depth + field.name, described
        yield from _tree(below, depth + 1)


def _described(kind: FieldType) -> tuple[str, Sequence[Field]]:
    """Return the word for a type, and the fields of the object in it."""
    match kind.WhichOneof("kind"):
        case "object":
            return "object", kind.object.fields
        case "array":
            described, below = _described(kind.array.item)
            return f"array of {described}", below
        case "map":
            described, below = _described(kind.map.value)
            return f"map of {described}", below
        case "decimal":
            return f"decimal({kind.decimal.precision},{kind.decimal.scale})", ()
        case None:
            return "(nested too deep to be shown)", ()
        case _:
            return word(ScalarType, kind.scalar).lower(), ()


def _type(text: str) -> FieldType:
    if found := _DECIMAL.fullmatch(text.replace(" ", "")):
        return FieldType(decimal=DecimalType(precision=int(found[1]), scale=int(found[2])))
    if text not in _SCALARS:
        raise typer.BadParameter(
            f"--declare: {text!r} is no type: write {', '.join(_SCALARS)} or decimal(12,2)."
        )
    return FieldType(scalar=_SCALARS[text])


def _identity(option: str, text: str, *, primary: bool) -> IdentityField:
    path, namespace = _pair(option, text, "personalEmail.address=Email")
    return IdentityField(path=path, namespace=namespace, primary=primary)


def _pair(option: str, text: str, example: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise typer.BadParameter(f"{option} {text!r} needs a name, `=` and a value, such as {example}.")
    return left, right
