"""Lists: which rows a page request asks for, in which order, so that each page begins where the last one ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Select,
    Text,
    asc,
    desc,
    func,
    literal,
    tuple_,
    type_coerce,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from profile_export.domain.lists import Filter, Order, PageRequest
from profile_export.store.db.columns import Instant

Columns: TypeAlias = Mapping[str, ColumnElement[Any]] | ReadOnlyColumnCollection[str, Column[Any]]
"""The columns of the fields that a list can be filtered and sorted by, by the fields' names."""


def those_of(query: Select[Any], conditions: Filter, columns: Columns) -> Select[Any]:
    """Narrow a query to the rows that meet all conditions; NULL meets none."""
    return query.where(*(condition.compared(columns[condition.field]) for condition in conditions))


def page_of(
    query: Select[Any], request: PageRequest, columns: Columns, order: Order, key: ColumnElement[Any]
) -> Select[Any]:
    """Narrow and sort a query to what a page and those behind it hold.

    Args:
        query: All of the list.
        request: The page; its own order goes before `order`.
        columns: Those of the fields that `request` may name, and of that of `order`.
        order: The order of the list.
        key: Decides between equals, in the same direction; as `Order.place` takes it, so unique in the list.

    Raises:
        InvalidArgumentError: The cursor is not one of this list.
    """
    order = request.order or order
    place = (_sortable(columns[order.field]), key)
    query = those_of(query, request.filter, columns)
    if request.after is not None:
        last = [literal(value, BigInteger() if isinstance(value, int) else Text()) for value in request.after]
        query = query.where(order.is_behind(tuple_(*place), tuple_(*last)))
    return query.order_by(*map(desc if order.descending else asc, place))


def _sortable(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return what stands for a column as `Order.place` has it: NULL, too, has a place."""
    plain = type_coerce(column, BigInteger()) if isinstance(column.type, Instant) else column
    return func.coalesce(plain, 0) if getattr(column, "nullable", False) else plain
