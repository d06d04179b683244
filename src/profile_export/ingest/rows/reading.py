"""Reads a file as its sender asked (`Reading`): placeholders as absent, fields under other names. And tells of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from profile_export.domain.catalog.batches import Reading
from profile_export.domain.schemas.learning import ValueRefusedError
from profile_export.ingest.output import FileRefusedError
from profile_export.ingest.rows.conform import entries_of, is_list, lengths_of, offsets_of, plain_values


class AppliedReading:
    """Applies a `Reading` to one pass over a file.

    `null_count` is how many texts were read as absent so far, those of rejected rows included; `notes` say in sentences
    what else of the file was left out.
    """

    def __init__(self, reading: Reading) -> None:
        self._nulls = frozenset(reading.null_values)
        self._null_array = pa.array(sorted(self._nulls), pa.string())
        self._renames = dict(reading.renames)
        self._unseen = set(self._renames)
        self.null_count = 0
        self.notes: list[str] = []

    def names(self, sent: Iterable[str]) -> list[str]:
        """Return the names that the columns of a file get. Its records have them then, and are not renamed once more.

        Raises:
            FileRefusedError: There is none of a name that is to be changed.
        """
        listed = list(sent)
        self._unseen.difference_update(listed)
        self.check_used()
        renames, self._renames = self._renames, {}
        return [renames.get(name, name) for name in listed]

    def check_used(self) -> None:
        """Refuse a file, read to its end or of columns, that lacks a field which is to be renamed.

        Raises:
            FileRefusedError: It does.
        """
        if self._unseen:
            missing = ", ".join(f"'{name}'" for name in sorted(self._unseen))
            message = (
                f"The file has no field {missing}, which is to be renamed: check how the file spells it."
            )
            raise FileRefusedError(message)

    def cells(self, cells: list[str]) -> list[str]:
        """Return the cells of a row, empty where they are absent; blanks around them are gone."""
        if not self._nulls:
            return cells
        kept = ["" if cell in self._nulls else cell for cell in cells]
        self.null_count += sum(cell != "" for cell in cells) - sum(cell != "" for cell in kept)
        return kept

    def record(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record with the names that its fields get, without texts that are absent; it is used up.

        Raises:
            ValueRefusedError: It has a field of a name that another one gets.
        """
        if self._renames:
            record = self._renamed(record)
        if self._nulls:
            self._drop_texts(record)
        return record

    def columns(self, batch: pa.RecordBatch, names: list[str]) -> pa.RecordBatch:
        """Return rows of a Parquet file whose columns get these names, without texts that are absent."""
        columns = [self._without_texts(column) for column in batch.columns] if self._nulls else batch.columns
        return pa.RecordBatch.from_arrays(columns, names)

    def _renamed(self, record: dict[str, Any]) -> dict[str, Any]:
        renamed: dict[str, Any] = {}
        for sent, value in record.items():
            name = self._renames.get(sent, sent)
            if name in renamed:
                raise ValueRefusedError(
                    (name,), "stands there twice once fields are renamed: rename the other one too"
                )
            renamed[name] = value
        self._unseen.difference_update(record)
        return renamed

    def _drop_texts(self, record: dict[str, Any]) -> None:
        waiting: list[dict[str, Any] | list[Any]] = [record]
        while waiting:
            holder = waiting.pop()
            members: Iterable[tuple[Any, Any]] = (
                holder.items() if isinstance(holder, dict) else enumerate(holder)
            )
            for place, value in list(members):
                if isinstance(value, dict | list):
                    waiting.append(value)
                elif isinstance(value, str) and value in self._nulls:
                    self.null_count += 1
                    if isinstance(holder, dict):
                        del holder[place]
                    else:
                        holder[place] = None

    def _without_texts(self, column: pa.Array) -> pa.Array:
        column = plain_values(column)
        found = column.type
        if pa.types.is_string(found) or pa.types.is_large_string(found):
            absent = pc.is_in(column, self._null_array.cast(found))
            self.null_count += absent.true_count
            return pc.if_else(absent, pa.scalar(None, found), column)
        if pa.types.is_struct(found):
            members = [self._without_texts(member) for member in column.flatten()]
            names = [member.name for member in found]
            return pa.StructArray.from_arrays(members, names, mask=column.is_null())
        if pa.types.is_map(found):
            entries = entries_of(column)
            keys, values = entries.flatten().flatten()
            offsets = offsets_of(lengths_of(entries))
            return pa.MapArray.from_arrays(offsets, keys, self._without_texts(values), mask=column.is_null())
        if is_list(found):
            offsets = offsets_of(lengths_of(column))
            return pa.ListArray.from_arrays(
                offsets, self._without_texts(column.flatten()), mask=column.is_null()
            )
        return column
