"""Names where ids go: of datasets and of merge policies."""

from __future__ import annotations

import difflib
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import typer

from profile_export.cli.terminal.cells import moment, one_line
from profile_export.client import Client

_ID = re.compile(r"[0-9a-f]{24}")
_MOST_NAMED = 5


class Listing(Protocol):
    """Lists things: those of a name, or all for None."""

    def __call__(self, client: Client, name: str | None, /) -> Awaitable[Sequence[Any]]:
        """Return them."""
        ...


@dataclass(frozen=True)
class Named:
    """Marks an option that takes an id, or the name that only one of the things listed has; of `deleted` none has."""

    things: str
    listed: Listing
    deleted: Listing | None = None

    async def id_of(self, client: Client, text: str) -> tuple[str, str]:
        """Return the id that a text means, and advice for the case that nothing has that id.

        What looks like an id is one, whatever else has it as its name; and so is what nothing has as its name.

        Raises:
            typer.BadParameter: Several have this name.
            ClientError: The server does not list them.
        """
        if not text or _ID.fullmatch(text):
            return text, ""
        found = await self.listed(client, text)
        if len(found) > 1:
            raise typer.BadParameter(_ambiguous(text, self.things, found))
        if found:
            return str(found[0].id), ""
        if self.deleted and await self.deleted(client, text):
            return (
                text,
                f"A deleted one has this name: `profile-export {self.things} list --deleted` shows it.",
            )
        names = {one.name.casefold(): one.name for one in await self.listed(client, None)}
        nearest = difflib.get_close_matches(text.casefold(), names, n=1)
        if nearest:
            return text, f"None has this name; the nearest is {one_line(names[nearest[0]])!r}."
        return text, f"`profile-export {self.things.split()[-1]} list` shows which there are."


def _ambiguous(name: str, things: str, found: Sequence[Any]) -> str:
    named = [f"{one.id} (created {moment(one.create_time.ToDatetime())})" for one in found[:_MOST_NAMED]]
    if len(found) > _MOST_NAMED:
        named.append(f"and {len(found) - _MOST_NAMED} more")
    return f"{len(found)} {things} have the name {name!r}, give the id of one: {', '.join(named)}."


async def _deleted(client: Client, name: str | None) -> Sequence[Any]:
    listed = await client.list_datasets(name, show_deleted=True)
    return [one for one in listed if one.HasField("delete_time")]


DATASET = Named("datasets", Client.list_datasets, _deleted)
DELETED_DATASET = Named("deleted datasets", _deleted)
POLICY = Named("merge policies", Client.list_policies)
