"""Schemas: register them, look them up."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from profile_export.cli.terminal.command import AsJson, command
from profile_export.cli.terminal.fields import (
    Identities,
    Primary,
    identity_fields,
    identity_lines,
    kind_word,
    print_fields,
)
from profile_export.cli.terminal.output import console, fact_table, moment, print_json, print_rows
from profile_export.client import Client, as_json

group = typer.Typer(no_args_is_help=True, help="Schemas: what rows are, as XDM JSON Schema documents.")


@command(group, "register")
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
    as_data: AsJson = False,
) -> None:
    """Register a schema and the documents that it names, all or none, and print its id.

    The schema is the one that none of the others names. What is registered already need not be sent again; a document
    that only adds fields becomes the next version.

    Example: `profile-export schemas register loyalty.json address.json --primary loyaltyId=Loyalty`
    """
    documents = {path: _document(path) for path in files}
    schema = _unnamed(documents)
    answer = await client.create_schema(
        schema.read_text("utf-8"),
        referenced=[path.read_text("utf-8") for path in documents if path != schema],
        identities=identity_fields(identity, primary),
    )
    if as_data:
        print_json(as_json(answer))
    else:
        typer.echo(answer.schema.id)


@command(group, "list")
async def list_(client: Client, as_data: AsJson = False) -> None:
    """List the newest version of every schema, the built-in ones included.

    Example: `profile-export schemas list`
    """
    schemas = await client.list_schemas()
    if as_data:
        print_json([as_json(schema) for schema in schemas])
        return
    rows = [
        (
            schema.id,
            str(schema.version),
            kind_word(schema.kind),
            schema.title + (" (built in)" if schema.built_in else ""),
        )
        for schema in schemas
    ]
    print_rows(("id", "version", "kind", "title"), rows, empty="No schemas.")


@command(group, "show")
async def show(
    client: Client,
    schema_id: Annotated[str, typer.Argument(metavar="ID", help="The $id of the schema.")],
    version: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Which version. Default: the newest.")
    ] = None,
    as_data: AsJson = False,
) -> None:
    """Show one schema: its fields as a tree, and which of them hold identities.

    Example: `profile-export schemas show https://ns.adobe.com/xdm/context/profile`
    """
    schema = await client.get_schema(schema_id, version)
    if as_data:
        print_json(as_json(schema))
        return
    facts: list[tuple[str, RenderableType]] = [("schema", schema.id)]
    if schema.title:
        facts.append(("title", schema.title))
    facts += [("kind", kind_word(schema.kind)), ("version", str(schema.version))]
    if schema.class_id:
        facts.append(("class", schema.class_id))
    if schema.identity_fields:
        facts.append(("identities", identity_lines(schema.identity_fields)))
    facts.append(("registered", "built in" if schema.built_in else moment(schema.create_time.ToDatetime())))
    console().print(fact_table(facts))
    typer.echo()
    print_fields(schema.fields)


@command(group, "union")
async def union(
    client: Client,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The class: _xdm.context.profile or _xdm.context.experienceevent."
        ),
    ],
    as_data: AsJson = False,
) -> None:
    """Show the union schema of a class: every field that some source dataset of it has.

    Example: `profile-export schemas union _xdm.context.profile`
    """
    schema = await client.get_union_schema(name)
    if as_data:
        print_json(as_json(schema))
        return
    datasets = "\n".join(schema.dataset_ids) or "none"
    console().print(fact_table([("schema", schema.schema_name), ("datasets", datasets)]))
    typer.echo()
    print_fields(schema.fields)


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
