"""Single profiles: look one up by any of its identities, with its events."""

from contextlib import aclosing
from typing import Annotated

import typer

from profile_export.cli.terminal.cells import values_by_path
from profile_export.cli.terminal.command import command, identity_parts, instant
from profile_export.cli.terminal.names import POLICY
from profile_export.cli.terminal.output import print_facts, print_rows
from profile_export.client import PAGE, Client, EventQuery, GetProfileResponse, Profile, ProfileEvent, as_json

group = typer.Typer(
    no_args_is_help=True, help="Single profiles, merged as an export at this moment would merge them."
)

Who = Annotated[
    str,
    typer.Argument(
        metavar="NAMESPACE:ID",
        help="Any identity of the profile; with graph `none` its primary one. Such as Email:ada@example.com",
    ),
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="PATH",
        help="A field to show, such as person.name. May be given again. Default: all.",
    ),
]
Policy = Annotated[
    str,
    typer.Option(metavar="POLICY", help="Merge policy, by its id or name. Default: the default one."),
    POLICY,
]


def _show(profile: Profile) -> None:
    print_facts(
        [
            ("id", profile.profile_id),
            ("identities", [f"{one.namespace}:{one.id}" for one in profile.identities]),
            ("datasets", list(profile.dataset_ids)),
            ("policy", f"{profile.merge_policy.id} version {profile.merge_policy.version}"),
            ("ingested", profile.ingest_time.ToDatetime()),
        ]
    )
    typer.echo()
    print_rows(
        ("field", "value"), list(values_by_path(as_json(profile.values))), empty="No fields.", free=("value",)
    )


def _show_either(found: Profile | GetProfileResponse) -> None:
    if isinstance(found, Profile):
        _show(found)
        return
    _show(found.profile)
    typer.echo()
    lines = [
        (
            *(("", "lost") if place else (one.path, "won")),
            source.dataset_id,
            source.batch_id,
            source.ingest_time.ToDatetime(),
            source.value,
        )
        for one in found.explanations
        for place, source in enumerate((one.won, *one.lost))
    ]
    headers = ("field", "", "dataset", "batch", "ingested", "value")
    print_rows(headers, lines, empty="No fields.", free=("value",), once=("field",))
    if found.unexplained_fields:
        typer.echo(f"Not explained: {found.unexplained_fields} fields more; name some with --field.")


@command(group, "show", _show_either)
async def show(
    client: Client,
    *,
    who: Who,
    field: Fields = None,
    policy: Policy = "",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of each field which dataset and batch won, and which lost.")
    ] = False,
) -> Profile | GetProfileResponse:
    """Show one profile: its identities, where it comes from, and its merged fields.

    Example: `profile-export profiles show CRM:C-1 --policy 3a1b… --explain`
    """
    ask = client.explain_profile if explain else client.get_profile
    return await ask(*identity_parts(who), fields=field or (), policy_id=policy)


def _show_events(found: list[ProfileEvent]) -> None:
    lines = [
        (*((event.event_time.ToDatetime(), event.id) if place == 0 else ("", "")), path, value)
        for event in found
        for place, (path, value) in enumerate(values_by_path(as_json(event.values)))
    ]
    print_rows(
        ("time", "id", "field", "value"), lines, empty="No events.", free=("value",), once=("time", "id")
    )


@command(group, "events", _show_events)
async def events(
    client: Client,
    *,
    who: Who,
    field: Fields = None,
    policy: Policy = "",
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="Only events of then or later.")] = "",
    until: Annotated[str, typer.Option("--to", metavar="TIME", help="Only events before then.")] = "",
    condition: Annotated[
        str,
        typer.Option(
            "--filter",
            metavar="TEXT",
            help='Such as `dataset_id = 5f0c… AND ingest_time > "2026-01-31T00:00:00Z"`; also id.',
        ),
    ] = "",
    latest_first: Annotated[bool, typer.Option("--latest-first", help="The reverse order.")] = False,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at most.")] = 100,
) -> list[ProfileEvent]:
    """List the experience events of one profile by their own time, the oldest first.

    Example: `profile-export profiles events CRM:C-1 --policy 3a1b… --latest-first --limit 10`
    """
    query = EventQuery(
        instant("--from", since), instant("--to", until), condition, latest_first, min(limit, PAGE)
    )
    listed = client.list_profile_events(
        *identity_parts(who), fields=field or (), policy_id=policy, query=query
    )
    found: list[ProfileEvent] = []
    async with aclosing(listed):
        async for event in listed:
            found.append(event)
            if len(found) == limit:
                break
    return found
