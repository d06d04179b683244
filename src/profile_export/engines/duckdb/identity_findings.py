"""What is worth telling of the identities that a job reads, since it explains rows that nobody expects.

None of it decides anything: where memory does not suffice, nothing is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import duckdb

from profile_export.domain.export.plan import LinkingIdentity
from profile_export.domain.merging.identity import UNUSUALLY_MANY
from profile_export.engines.duckdb.spelling import text
from profile_export.engines.expression.tables import NAMESPACES

_MOST_SPELLED_ROWS = 1_000_000
"""Of more, spellings are not looked at: it would take a tenth of a second of each further million."""
_SAMPLED_FROM = 250_000
"""From so many rows on, one identity of several stands for the others."""
_BLANKS = " \t\n\r\u00a0"


def shared_identities(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, str], rows: int) -> int:
    """Count the identities that occur with several primary ones, which a graph would link; more are estimated.

    Args:
        connection: The database.
        tables: Queries of all rows, as `bound_tables` makes them.
        rows: How many there are.
    """
    step = rows // _SAMPLED_FROM + 1
    query = f"""
        SELECT count(*) FROM (
            SELECT key_low FROM ({_occurring(tables)}) WHERE key_low % {step} = 0
            GROUP BY key_low HAVING min(owner) <> max(owner))"""
    try:
        ((shared,),) = connection.execute(query).fetchall()
    except duckdb.OutOfMemoryException:
        return 0
    return int(shared) * step


def spelled_apart(
    connection: duckdb.DuckDBPyConnection, tables: Mapping[str, str], rows: int
) -> dict[str, int]:
    """Count by namespace the ids that differ from another in case or blanks alone; more are estimated.

    The arguments are those of `shared_identities`. Namespaces are as sent.
    """
    if rows > _MOST_SPELLED_ROWS or not tables:
        return {}
    step = rows // _SAMPLED_FROM + 1
    plain = "lower(" + "".join("replace(" for _ in _BLANKS) + "id"
    plain += "".join(f", {text(blank)}, '')" for blank in _BLANKS) + ")"
    query = f"""
        SELECT min(namespace), sum(ids)::BIGINT FROM (
            SELECT lower(namespace) AS folded, min(namespace) AS namespace, count(DISTINCT id) AS ids
            FROM (SELECT namespace, id, {plain} AS plain FROM ({_occurring(tables)}))
            WHERE hash(plain) % {step} = 0 GROUP BY folded, plain HAVING min(id) <> max(id))
        GROUP BY folded ORDER BY folded"""
    try:
        return {namespace: ids * step for namespace, ids in connection.execute(query).fetchall()}
    except duckdb.OutOfMemoryException:
        return {}


def _occurring(tables: Mapping[str, str]) -> str:
    """Select every identity of every row, and half of the key of the row's primary one."""
    return " UNION ALL ".join(
        f"""SELECT namespace, identity AS id, key_low, key_low AS owner FROM ({rows})
        UNION ALL SELECT link.namespace, link.id, link.key_low, owner
        FROM (SELECT key_low AS owner, unnest(links) AS link FROM ({rows}) WHERE links IS NOT NULL)"""
        for rows in tables.values()
    )


def links_most(
    connection: duckdb.DuckDBPyConnection, tables: Collection[str], *, respelled: bool
) -> LinkingIdentity | None:
    """Find the identity that occurs together with the most others, in profiles of unusually many; None: there are none.

    Args:
        connection: The database, with a table `profiles`.
        tables: Those of the rows of these profiles, replaced ones among them.
        respelled: Whether `NAMESPACES` has spellings of namespaces.
    """
    crowded = "SELECT profile_high, profile_low FROM profiles WHERE identities > " + str(UNUSUALLY_MANY)
    if not connection.execute(f"{crowded} LIMIT 1").fetchall():
        return None
    pairs = " UNION ALL ".join(
        f"""SELECT namespace, identity AS id, unnest(links) AS other, key_high, key_low
        FROM {table} SEMI JOIN ({crowded}) AS crowded USING (profile_high, profile_low) WHERE links IS NOT NULL"""
        for table in tables
    )
    spelled = f"LEFT JOIN {NAMESPACES} AS known ON known.sent = found.namespace" if respelled else ""
    namespace = "coalesce(known.registered, found.namespace)" if respelled else "found.namespace"
    query = f"""
        WITH pairs AS MATERIALIZED ({pairs}), found AS (
            SELECT key_high, key_low, min(namespace) AS namespace, min(id) AS id, count(DISTINCT other) AS others
            FROM (
                SELECT key_high, key_low, namespace, id, other.key_low AS other FROM pairs
                UNION ALL
                SELECT other.key_high, other.key_low, other.namespace, other.id, key_low FROM pairs)
            GROUP BY key_high, key_low)
        SELECT {namespace} AS namespace, id, others FROM found {spelled}
        ORDER BY others DESC, namespace, id LIMIT 1"""
    try:
        ((found, own, others),) = connection.execute(query).fetchall()
    except duckdb.OutOfMemoryException:
        return None
    return LinkingIdentity(found, own, others)
