"""Merge policies: which fragments form one profile."""

from enum import Enum
from typing import Annotated

import typer

from profile_export.cli.command import AsJson, command
from profile_export.cli.output import print_json, print_rows
from profile_export.client import Client, IdentityGraph, as_json

group = typer.Typer(no_args_is_help=True, help="Merge policies: which identities are one person.")


class Graph(Enum):
    """Which identities are one person."""

    NONE = "none"
    PDG = "pdg"


_GRAPHS = {Graph.NONE: IdentityGraph.IDENTITY_GRAPH_NONE, Graph.PDG: IdentityGraph.IDENTITY_GRAPH_PDG}


@command(group, "create")
async def create(
    client: Client,
    graph: Annotated[
        Graph,
        typer.Option(
            help="`pdg`: identities linked by any record or event are one person. `none`: each primary one is."
        ),
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="For people; need not be unique. Default: the graph.")
    ] = "",
    as_data: AsJson = False,
) -> None:
    """Make a merge policy in which the record ingested later wins, and print its id.

    Example: `profile-export policies create --graph pdg --name "one row per person"`
    """
    policy = await client.create_policy(name or f"timestampOrdered-{graph.value}", _GRAPHS[graph])
    if as_data:
        print_json(as_json(policy))
    else:
        typer.echo(policy.id)


@command(group, "list")
async def list_(client: Client, as_data: AsJson = False) -> None:
    """List the merge policies, the built-in one included.

    Example: `profile-export policies list`
    """
    policies = await client.list_policies()
    if as_data:
        print_json([as_json(policy) for policy in policies])
        return
    rows = [
        (
            policy.id,
            str(policy.version),
            IdentityGraph.Name(policy.identity_graph).removeprefix("IDENTITY_GRAPH_").lower(),
            policy.name + (" (built in)" if policy.built_in else ""),
        )
        for policy in policies
    ]
    print_rows(("id", "version", "graph", "name"), rows, empty="No merge policies.")
