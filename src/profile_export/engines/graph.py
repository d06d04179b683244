"""The mapping of a plan: kept from an earlier attempt, extended by new batches, or made from all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from profile_export.domain.plan import ExportPlan
from profile_export.engines.extension import extend
from profile_export.engines.kept_graphs import KeptGraphs
from profile_export.engines.links import Links
from profile_export.engines.mapping import MappingFacts, mapping_facts
from profile_export.engines.memory import memory_of
from profile_export.engines.resolution import Space, resolve


@contextmanager
def half_of_memory(connection: duckdb.DuckDBPyConnection) -> Iterator[int]:
    """Leave a database half of the memory that it may take while this lasts; yields the other half, in bytes."""
    limit = memory_of(connection)
    connection.execute(f"SET memory_limit = '{limit // 2}B'")
    try:
        yield limit // 2
    finally:
        connection.execute(f"SET memory_limit = '{limit}B'")


def mapping_of(plan: ExportPlan, links: Links, lake_root: Path, space: Space) -> tuple[Path, MappingFacts]:
    """Return the mapping of exactly the plan's batches, as a file in the space's folder.

    Where the plan says where graphs are kept, one of all its batches is taken as it is; the largest of some of them is
    extended by the links of the others; one that has a batch which does not count any more is of no use, since no
    one can tell what it alone had linked.
    """
    batches = {batch.id: batch.number for batch in plan.batches}
    kept, mapping = space.folder / "kept.parquet", space.folder / "mapping.parquet"
    graphs = KeptGraphs(lake_root / plan.graph_folder) if plan.graph_folder else None
    if graphs is not None and graphs.fetch(batches, kept):
        facts = mapping_facts(kept)
        if facts.batches == batches:
            return kept.rename(mapping), facts
        others = batches.keys() - facts.batches.keys()
        facts = extend(kept, links.pairs(others), links.at_most(others), batches, space, mapping)
    else:
        facts = resolve(links.pairs(), links.at_most(), batches, space, mapping)
    if graphs is not None:
        graphs.keep(mapping)
    return mapping, facts
