"""Which rows count, and in what order."""

from __future__ import annotations

from collections.abc import Sequence

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from profile_export.engines.inputs import KEY, batches_table

SAME_RECORD = ("dataset", *KEY)
"""Records alike in these replace each other, or patch the older ones (S9)."""
SAME_EVENT = ("dataset", *KEY, "event_id")
"""Events alike in these are one event (S16)."""
_OF_BATCH = ("first_place", "attached", "newer")
WIDE = dt.Decimal(38, 0, nullable=False)


class Rows:
    """The rows of one kind of source. Of rows that are the same thing only the one of the latest place is current.

    Records of sources that upsert are all current: they make up one fragment, in the place of its `newest` (S9). For
    that, `place` is made `wide` wherever `upserts` says that there are such sources.

    Every method reads the columns it is asked for and no others, and starts from the bound table again: a shared
    wide intermediate would be materialised.
    """

    def __init__(self, table: ir.Table, same: Sequence[str], *, upserts: bool = False) -> None:
        self._table = table
        self._same = tuple(same)
        self._upserts = upserts
        # Nearly every row is the only one of its kind, so it pays to look at narrow rows first and to take the few
        # that are superseded out of the wide ones, instead of ordering wide rows.
        narrow = self._placed(self._same)
        repeated = narrow.group_by(self._same).agg(latest=narrow.place.max(), rows=narrow.count())
        self._repeated = repeated.filter(repeated.rows > 1).drop("rows")

    def current(self, columns: Sequence[str]) -> ir.Table:
        """Return columns of the current rows, with `place`, `attached`, `newer`, and `newest` if there are upserts."""
        if self._upserts:
            rows = self.every(columns)
            return rows.filter(rows.current)
        rows = self._placed(dict.fromkeys((*columns, *self._same)))
        newer = self._repeated
        same = [rows[name] == newer[name] for name in self._same]
        return rows.anti_join(newer, [*same, rows.place < newer.latest])

    def every(self, columns: Sequence[str]) -> ir.Table:
        """Return columns of all rows, as `current`, and whether the row is `current`."""
        upserts = ("upserts",) if self._upserts else ()
        rows = self._placed(dict.fromkeys((*columns, *self._same, *upserts)))
        newer = self._repeated
        same = [rows[name] == newer[name] for name in self._same]
        joined = rows.left_join(newer, same)
        found = joined.select(*(rows[name] for name in rows.columns), newer.latest)
        newest = found.latest.isnull() | (found.place == found.latest)
        if not self._upserts:
            return found.select(*rows.columns, current=newest)
        others = [name for name in rows.columns if name not in {"place", "upserts"}]
        fragment = ibis.coalesce(found.latest, found.place)
        return found.select(
            *others, newest=newest, current=newest | found.upserts, place=wide(fragment, found.place)
        )

    def _placed(self, columns: Sequence[str] | dict[str, None]) -> ir.Table:
        batches = batches_table()
        rows = self._table.select(*columns, "batch_id", "row")
        joined = rows.join(batches, rows.batch_id == batches.batch_id)
        placed = joined.select(
            *(rows[name] for name in columns), rows.row, *(batches[name] for name in _OF_BATCH)
        )
        return placed.select(*columns, "attached", "newer", place=placed.first_place + placed.row)


def wide(place: ir.IntegerValue, below: ir.IntegerValue | None = None) -> ir.Value:
    """Return a place, or a place above another, as one number: comparing two columns takes much longer.

    What is cast to `WIDE` on the way may be any integer of 128 bits; its type is told from users' decimals by not being
    nullable.
    """
    # In two steps, since 2**63 itself is no integer of 64 bits.
    above = place.cast(WIDE) * 2**32 * 2**31
    return above if below is None else above + below
