"""Merge policies: which fragments form one profile, and which value wins."""

from collections.abc import Iterable
from enum import Enum
from typing import Annotated

import typer

from profile_export.cli.terminal.cells import word
from profile_export.cli.terminal.command import AsJson, command, identity_parts, no, version_number
from profile_export.cli.terminal.names import DATASET, POLICY
from profile_export.cli.terminal.output import print_facts, print_id, print_json, print_rows
from profile_export.client import Client, IdentityGraph, MergePolicy

group = typer.Typer(
    no_args_is_help=True,
    help="Merge policies: which identities are one person, and which value wins.",
)

PolicyId = Annotated[
    str, typer.Argument(metavar="POLICY", help="Any merge policy, by its id or name."), POLICY
]


class Graph(Enum):
    """Which identities are one person."""

    NONE = "none"
    PDG = "pdg"


_GRAPH_HELP = "`pdg`: identities linked by any record or event are one person. `none`: each primary one is."
Ordered = Annotated[
    list[str] | None,
    typer.Option(
        "--order",
        metavar="DATASET",
        help="A source that takes part, by its id or name, strongest first. May be given again.",
    ),
    DATASET,
]
Excluded = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="NAMESPACE:ID",
        help="An identity that links nobody, such as the placeholder Email:NULL. May be given again.",
    ),
]


@command(group, "create", print_id)
async def create(
    client: Client,
    *,
    graph: Annotated[Graph, typer.Option(help=_GRAPH_HELP)],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="For people; need not be unique. Default: the rules.")
    ] = "",
    order: Ordered = None,
    exclude: Excluded = None,
    default: Annotated[
        bool, typer.Option("--default", help="Jobs that name no policy use it from now on.")
    ] = False,
) -> MergePolicy:
    """Make a merge policy and print its id.

    Without --order the record ingested later wins; with it the dataset named earlier does, and records of
    others take no part.

    Example: `profile-export policies create --graph pdg --name "one row per person" --default`
    """
    rules = f"{'dataSetPrecedence' if order else 'timestampOrdered'}-{graph.value}"
    return await client.create_policy(
        name or rules,
        _wire(graph),
        order=order or (),
        is_default=default,
        excluded=[identity_parts(one) for one in exclude or ()],
    )


def _show_all(policies: list[MergePolicy]) -> None:
    rows = [(policy.id, policy.version, _graph_word(policy), _marked_name(policy)) for policy in policies]
    print_rows(("id", "version", "graph", "name"), rows, empty=no("merge policies"), free=("name",))


@command(group, "list", _show_all)
async def list_(client: Client) -> list[MergePolicy]:
    """List the newest version of every merge policy, the built-in one included.

    Example: `profile-export policies list`
    """
    return await client.list_policies()


def _show(policy: MergePolicy) -> None:
    ranked = ["the dataset named earlier:", *policy.attribute_merge.order]
    updated = policy.update_time != policy.create_time
    print_facts(
        [
            ("policy", policy.id),
            ("version", str(policy.version)),
            ("name", _marked_name(policy)),
            ("graph", _graph_word(policy)),
            ("wins", ranked if policy.attribute_merge.order else "the record ingested later"),
            ("excluded", [f"{one.namespace}:{one.id}" for one in policy.excluded_identities] or None),
            ("created", None if policy.built_in else policy.create_time.ToDatetime()),
            ("updated", policy.update_time.ToDatetime() if updated and not policy.built_in else None),
        ]
    )


@command(group, "show", _show)
async def show(
    client: Client,
    policy_id: PolicyId,
    version: Annotated[
        int | None,
        typer.Option(parser=version_number, metavar="N", help="Which version. Default: the newest."),
    ] = None,
) -> MergePolicy:
    """Show one merge policy: which identities are one person, and which value wins.

    Example: `profile-export policies show 3a1b… --version 1`
    """
    return await client.get_policy(policy_id, version)


@command(group, "update", _show)
async def update(
    client: Client,
    policy_id: PolicyId,
    *,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Its new name.")] = None,
    graph: Annotated[Graph | None, typer.Option(help=_GRAPH_HELP)] = None,
    order: Ordered = None,
    no_order: Annotated[bool, typer.Option("--no-order", help="The record ingested later wins.")] = False,
    exclude: Excluded = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="NAMESPACE:ID",
            help="An excluded identity that links again from now on. May be given again.",
        ),
    ] = None,
    default: Annotated[
        bool | None,
        typer.Option("--default/--no-default", help="Whether jobs that name no policy use it from now on."),
    ] = None,
) -> MergePolicy:
    """Change what is given, leave the rest, and show the version that follows. Jobs keep the version they have.

    With --order the whole order is replaced; --exclude adds to what is excluded, --include takes from it. Which
    policy is the default belongs to no version.

    Example: `profile-export policies update 3a1b… --order 5f0c… --order 7d2e…`
    """
    if not (order or no_order or name is not None or graph or exclude or include or default is not None):
        raise typer.BadParameter(
            "Nothing to change: add --name, --graph, --order, --no-order, --exclude, --include, --default or "
            "--no-default."
        )
    if order and no_order:
        raise typer.BadParameter("Either --order or --no-order.")
    former = await client.get_policy(policy_id) if exclude or include else None
    return await client.update_policy(
        policy_id,
        name=name,
        graph=_wire(graph) if graph else None,
        order=order or () if order or no_order else None,
        is_default=default,
        excluded=None if former is None else _excluded(former, exclude or (), include or ()),
        # The list is sent whole: what others have excluded since is not to be lost.
        etag="" if former is None else former.etag,
    )


def _excluded(former: MergePolicy, more: Iterable[str], fewer: Iterable[str]) -> list[tuple[str, str]]:
    """Return what a policy is to exclude; namespaces are found without regard to case."""
    excluded = {
        (one.namespace.casefold(), one.id): (one.namespace, one.id) for one in former.excluded_identities
    }
    for namespace, own in map(identity_parts, more):
        excluded.setdefault((namespace.casefold(), own), (namespace, own))
    for namespace, own in map(identity_parts, fewer):
        if excluded.pop((namespace.casefold(), own), None) is None:
            raise typer.BadParameter(f"--include {namespace}:{own}: the policy does not exclude it.")
    return list(excluded.values())


@command(group, "delete")
async def delete(client: Client, policy_id: PolicyId, as_data: AsJson = False) -> None:
    """Delete a merge policy with all its versions; jobs that have it finish with it.

    Example: `profile-export policies delete 3a1b…`
    """
    await client.delete_policy(policy_id)
    if as_data:
        print_json({"id": policy_id, "deleted": True})
    else:
        typer.echo(f"policy {policy_id} deleted")


def _wire(graph: Graph) -> IdentityGraph.ValueType:
    return IdentityGraph.Value(f"IDENTITY_GRAPH_{graph.name}")


def _graph_word(policy: MergePolicy) -> str:
    return word(IdentityGraph, policy.identity_graph).lower()


def _marked_name(policy: MergePolicy) -> str:
    """Return a policy's name, and behind it what sets it apart."""
    marks = [mark for mark, holds in (("built in", policy.built_in), ("default", policy.is_default)) if holds]
    return policy.name + (f" ({', '.join(marks)})" if marks else "")
