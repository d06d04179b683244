"""Commands that talk to a server: the address, the connection, --json, and how an error ends them."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shlex
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import typer

from profile_export.cli.terminal.names import Named
from profile_export.cli.terminal.output import complain, print_json
from profile_export.cli.terminal.server import ADDRESS, ORG, SANDBOX, Server, chosen, server_of
from profile_export.client import Client, ClientError, as_json

_Work = Callable[..., Coroutine[Any, Any, Any]]
_WorkT = TypeVar("_WorkT", bound=_Work)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, fields named as in the contract.")]
RequestId = Annotated[
    str,
    typer.Option(metavar="KEY", help="Makes the call safe to repeat: the same key gives the same result."),
]


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SERVER_OPTIONS = {"address": ADDRESS, "org": ORG, "sandbox": SANDBOX}
_HIGHEST_ID = 2**63 - 1
_HIGHEST_VERSION = 2**31 - 1
_MOST_DIGITS = 20
_LOST_DIGITS = re.compile(r"[.,][0-9]{6}(0*[1-9][0-9]*)")
_ASKED: ContextVar[Server] = ContextVar("asked")
_GIVEN: ContextVar[Mapping[str, str | None]] = ContextVar("given")


def command(
    group: typer.Typer, name: str, show: Callable[[Any], None] | None = None
) -> Callable[[_WorkT], _WorkT]:
    """Make a coroutine that takes a client and options into a command of a group.

    The command gets the options of the coroutine, and those that name the server. Where one is marked as `Named`, names
    become ids. A parameter that is a dataclass
    stands for its fields, each an option. It exits with 1 and one line if a call fails, else with the number that the
    coroutine returns. With `show` the coroutine returns messages instead, one or a list: the command prints them as
    JSON if it gets --json, else it has them shown.
    """

    def decorate(work: _WorkT) -> _WorkT:
        group.command(name)(_command(work, show))
        return work

    return decorate


def _command(work: _Work, show: Callable[[Any], None] | None) -> Callable[..., None]:
    def run(context: typer.Context, **options: Any) -> None:
        given = chosen(context, **{name: options.pop(name) for name in _SERVER_OPTIONS})
        server = server_of(os.environ, given)
        _ASKED.set(server)
        _GIVEN.set(given)
        as_data = show and options.pop("as_data")
        answer = asyncio.run(_talk(server, lambda client: ask(client, options)))
        if as_data:
            print_json([as_json(one) for one in answer] if isinstance(answer, list) else as_json(answer))
        elif show:
            show(answer)
        elif answer:
            raise typer.Exit(answer)

    async def ask(client: Client, options: dict[str, Any]) -> Any:
        advice = await _take_names(client, options, named)
        for name, kind in grouped.items():
            options[name] = kind(**{field.name: options.pop(field.name) for field in fields(kind)})
        try:
            return await work(client, **options)
        except ClientError as error:
            if error.code == "NOT_FOUND":
                error.message = " ".join((error.message, *advice))
            raise

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
    named = {
        option.name: mark
        for option in own
        for mark in getattr(option.annotation, "__metadata__", ())
        if isinstance(mark, Named)
    }
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


async def _take_names(client: Client, options: dict[str, Any], named: Mapping[str, Named]) -> list[str]:
    """Put the ids in the place of names, and return advice for the case that one is of nothing."""
    told: list[str] = []
    for option, mark in named.items():
        given = options[option]
        texts = given if isinstance(given, list) else [given or ""]
        found = [await mark.id_of(client, text) for text in texts]
        if given:
            ids = [one for one, _ in found]
            options[option] = ids if isinstance(given, list) else ids[0]
        told += [advice for _, advice in found if advice]
    return told


async def _talk(server: Server, ask: Callable[[Client], Awaitable[Any]]) -> Any:
    try:
        async with Client(server.address, org=server.org, sandbox=server.sandbox) as client:
            return await ask(client)
    except ClientError as error:
        complain(explain(error, server.address, server.tenant))
        raise typer.Exit(1) from None


def explain(error: ClientError, address: str, tenant: str = "") -> str:
    """Say in one line what went wrong and what to do about it; `tenant` is in words, empty: the default one."""
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
    if error.code == "NOT_FOUND" and tenant:
        line += f" Looked for in {tenant}."
    return f"{line} [{error.reason or error.code}]"


def no(things: str, advice: str = "") -> str:
    """Return the sentence for an empty list of the tenant that was asked for.

    A tenant that was named is named again: one that nobody has written to, as after a slip of the finger, looks no
    other than one that is empty.
    """
    tenant = _ASKED.get().tenant
    where = f"Nobody has written any to {tenant}, or they are gone." if tenant else ""
    return " ".join(part for part in (f"No {things}.", where, advice) if part)


def server_options() -> str:
    """Return the options that named the server of the command that runs, to be typed behind another one."""
    given = _GIVEN.get().items()
    return "".join(f" --{name} {shlex.quote(text)}" for name, text in given if text is not None)


# --- How the text of an option is read ---


def instant(option: str, text: str) -> datetime | None:
    """Read the time of an option; None if it is not given.

    Raises:
        typer.BadParameter: It is no time, has no offset from UTC, or is beyond the years 1 to 9999.
    """
    if not text:
        return None
    form = "write it as 2026-01-31T00:00:00Z or 2026-01-31T09:00:00+09:00"
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is no time: {form}.") from None
    if found := _LOST_DIGITS.search(text):
        raise typer.BadParameter(
            f"{option} {text!r} has digits behind the microsecond, {found[1]}: leave them out."
        )
    if time.tzinfo is None:
        raise typer.BadParameter(f"{option} {text!r} does not say in which zone: {form}.")
    try:
        return time.astimezone(UTC)
    except (OverflowError, ValueError):
        raise typer.BadParameter(f"{option} {text!r} is not within the years 1 to 9999 of UTC.") from None


def identity_parts(text: str) -> tuple[str, str]:
    """Read an identity that a caller has typed: its namespace and its id, the namespace without a colon.

    Raises:
        typer.BadParameter: One of them is missing.
    """
    namespace, colon, identity_id = text.partition(":")
    if not (namespace and colon and identity_id):
        raise typer.BadParameter(f"{text!r} is no identity: write it as Email:ada@example.com.")
    return namespace, identity_id


def job_number(text: str) -> int:
    """Read the number of a job.

    Raises:
        typer.BadParameter: It is none, or no job can have it.
    """
    return _number(text, _HIGHEST_ID, "is no number of a job: write it as 7.")


def version_number(text: str) -> int:
    """Read the number of a version.

    Raises:
        typer.BadParameter: It is none, or no version can have it.
    """
    return _number(text, _HIGHEST_VERSION, "is no version: write it as 1.")


def _number(text: str, highest: int, refusal: str) -> int:
    is_number = re.fullmatch(r"[0-9]+", text) and len(text) < _MOST_DIGITS
    if not is_number or not 1 <= int(text) <= highest:
        raise typer.BadParameter(f"{text!r} {refusal}")
    return int(text)


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
