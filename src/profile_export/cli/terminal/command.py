"""Commands that talk to a server: the address, the connection, --json, and how an error ends them."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import typer

from profile_export.cli.terminal.output import complain, print_json
from profile_export.client import Client, ClientError, as_json

DEFAULT_ADDRESS = "127.0.0.1:50051"

_Work = Callable[..., Coroutine[Any, Any, Any]]
_WorkT = TypeVar("_WorkT", bound=_Work)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, fields named as in the contract.")]
RequestId = Annotated[
    str,
    typer.Option(metavar="KEY", help="Makes the call safe to repeat: the same key gives the same result."),
]


@dataclass(frozen=True)
class Server:
    """Which server to talk to, and as whom."""

    address: str
    org: str
    sandbox: str


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PANEL = "Server (also before the command)"
_ADDRESS = typer.Option(
    "--address",
    metavar="HOST:PORT",
    help=f"Where the server listens; or PROFILE_EXPORT_ADDRESS. Default: {DEFAULT_ADDRESS}.",
    rich_help_panel=_PANEL,
)
_ORG = typer.Option("--org", metavar="ORG", help="Organisation of the tenant.", rich_help_panel=_PANEL)
_SANDBOX = typer.Option("--sandbox", metavar="NAME", help="Sandbox of the tenant.", rich_help_panel=_PANEL)
_SERVER_OPTIONS = {"address": _ADDRESS, "org": _ORG, "sandbox": _SANDBOX}


def command(
    group: typer.Typer, name: str, show: Callable[[Any], None] | None = None
) -> Callable[[_WorkT], _WorkT]:
    """Make a coroutine that takes a client and options into a command of a group.

    The command gets the options of the coroutine, and those that name the server. A parameter that is a dataclass
    stands for its fields, each an option. It exits with 1 and one line if a call fails, else with the number that the
    coroutine returns. With `show` the coroutine returns messages instead, one or a list: the command prints them as
    JSON if it gets --json, else it has them shown.
    """

    def decorate(work: _WorkT) -> _WorkT:
        group.command(name)(_command(work, show))
        return work

    return decorate


def _command(work: _Work, show: Callable[[Any], None] | None) -> Callable[..., None]:
    def run(context: typer.Context, **options: object) -> None:
        chosen = {name: options.pop(name) for name in _SERVER_OPTIONS}
        root: Server = context.find_root().obj
        server = Server(*(str(chosen[name] or getattr(root, name)) for name in _SERVER_OPTIONS))
        as_data = show and options.pop("as_data")
        for name, kind in grouped.items():
            options[name] = kind(**{field.name: options.pop(field.name) for field in fields(kind)})
        answer = asyncio.run(_talk(server, work, options))
        if as_data:
            print_json([as_json(one) for one in answer] if isinstance(answer, list) else as_json(answer))
        elif show:
            show(answer)
        elif answer:
            raise typer.Exit(answer)

    taken = list(inspect.signature(work, eval_str=True).parameters.values())[1:]
    grouped: dict[str, Any] = {one.name: one.annotation for one in taken if is_dataclass(one.annotation)}
    own = [
        option
        for one in taken
        for option in (
            inspect.signature(one.annotation, eval_str=True).parameters.values()
            if one.name in grouped
            else (one,)
        )
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    if show:
        own.append(inspect.Parameter("as_data", keyword, default=False, annotation=AsJson))
    shared = [
        inspect.Parameter(name, keyword, default=None, annotation=Annotated[str | None, option])
        for name, option in _SERVER_OPTIONS.items()
    ]
    first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    return declared(run, work, [first, *(parameter.replace(kind=keyword) for parameter in own), *shared])


def declared(
    run: Callable[..., None], work: Callable[..., object], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Give a function the parameters that typer makes options of, and the text of what it runs."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads the options from it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = work.__doc__
    return run


async def _talk(server: Server, work: _Work, options: dict[str, object]) -> Any:
    try:
        async with Client(server.address, org=server.org, sandbox=server.sandbox) as client:
            return await work(client, **options)
    except ClientError as error:
        complain(explain(error, server.address))
        raise typer.Exit(1) from None


def explain(error: ClientError, address: str) -> str:
    """Say in one line what went wrong and what to do about it."""
    if error.code == "UNAVAILABLE" and not error.reason:
        cause = " ".join(error.message.split()).rsplit(": ", 1)[-1]
        return (
            f"No server answers at {address} ({cause}). Start one with `profile-export serve --data-dir DIR`, "
            "or name another with --address."
        )
    line = " ".join(error.message.split())
    fields = [f"{one.field}: {one.description}" for one in error.violations if one.description not in line]
    if fields:
        line += " " + "; ".join(fields)
    return f"{line} [{error.reason or error.code}]"


def instant(option: str, text: str) -> datetime | None:
    """Read the time of an option, in UTC unless it says otherwise; None if it is not given.

    Raises:
        typer.BadParameter: It is no time.
    """
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is no time: write it as 2026-01-31T00:00:00Z.") from None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def length(option: str, text: str) -> timedelta | None:
    """Read the length of time of an option, such as 90s or 12h; None if it is not given.

    Raises:
        typer.BadParameter: It is none.
    """
    if not text:
        return None
    if not (found := re.fullmatch(r"([0-9]{1,9})([smhd])", text)):
        raise typer.BadParameter(f"{option} {text!r} is no length of time: write it as 90s, 30m, 12h or 2d.")
    number, unit = found.groups()
    return timedelta(**{_UNITS[unit]: int(number)})
