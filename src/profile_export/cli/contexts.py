"""Contexts: servers and tenants by name, so that commands need not be told each time."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated

import typer

from profile_export.cli.terminal.cells import Cell
from profile_export.cli.terminal.command import AsJson
from profile_export.cli.terminal.output import print_facts, print_json, print_rows
from profile_export.cli.terminal.server import ADDRESS, ORG, SANDBOX, Contexts, Server, chosen

group = typer.Typer(
    no_args_is_help=True,
    help="Contexts: servers and tenants by name. Options and variables beat the one in use.",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the context.")]


@group.command("set")
def set_(
    context: typer.Context,
    name: Name,
    address: Annotated[str | None, ADDRESS] = None,
    org: Annotated[str | None, ORG] = None,
    sandbox: Annotated[str | None, SANDBOX] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make a context, or change what is given of one. The first one is in use at once.

    Example: `profile-export contexts set staging --address staging:50051 --sandbox dev`
    """
    if not name or not name.isprintable():
        raise typer.BadParameter(f"{name!r} is no name of a context.")
    contexts = Contexts.load()
    given = chosen(context, address=address, org=org, sandbox=sandbox)
    server = contexts.servers.get(name, Server()).but(**given)
    contexts = Contexts({**contexts.servers, name: server}, contexts.current or name)
    contexts.save()
    _print(contexts, name, as_json=as_json)


@group.command("use")
def use(name: Name, *, as_json: AsJson = False) -> None:
    """Use a context from now on.

    Example: `profile-export contexts use staging`
    """
    contexts = replace(_having(name), current=name)
    contexts.save()
    _print(contexts, name, as_json=as_json)


@group.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List the contexts; the one in use is marked.

    Example: `profile-export contexts list`
    """
    contexts = Contexts.load()
    if as_json:
        print_json([_data(contexts, name) for name in contexts.servers])
        return
    rows: list[tuple[Cell, ...]] = [
        ("*" if name == contexts.current else "", name, one.address, one.org, one.sandbox)
        for name, one in contexts.servers.items()
    ]
    empty = "No contexts. Make one: profile-export contexts set NAME --address HOST:PORT"
    print_rows(("in use", "name", "address", "org", "sandbox"), rows, empty=empty)


@group.command("show")
def show(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Name of the context. Default: the one in use.")
    ] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Show one context.

    Example: `profile-export contexts show`
    """
    name = name or Contexts.load().current
    if not name:
        raise typer.BadParameter("No context is in use: profile-export contexts use NAME")
    _print(_having(name), name, as_json=as_json)


@group.command("remove")
def remove(name: Name, *, as_json: AsJson = False) -> None:
    """Forget a context. If it was in use, none is.

    Example: `profile-export contexts remove staging`
    """
    contexts = _having(name)
    rest = {other: server for other, server in contexts.servers.items() if other != name}
    Contexts(rest, "" if contexts.current == name else contexts.current).save()
    if as_json:
        print_json(_data(contexts, name))
    else:
        print_facts([("removed", name)])


def _having(name: str) -> Contexts:
    contexts = Contexts.load()
    if name not in contexts.servers:
        known = ", ".join(map(repr, contexts.servers)) or "none"
        raise typer.BadParameter(f"There is no context {name!r}; there are: {known}.")
    return contexts


def _print(contexts: Contexts, name: str, *, as_json: bool) -> None:
    if as_json:
        print_json(_data(contexts, name))
        return
    server = contexts.servers[name]
    print_facts(
        [
            ("context", name),
            ("in use", "yes" if name == contexts.current else "no"),
            ("address", server.address),
            ("org", server.org or None),
            ("sandbox", server.sandbox or None),
        ]
    )


def _data(contexts: Contexts, name: str) -> dict[str, str | bool]:
    return {"name": name, "in_use": name == contexts.current, **asdict(contexts.servers[name])}
