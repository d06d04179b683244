"""The expression as DuckDB's text."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import ibis.expr.operations as ops
import ibis.expr.types as ir
import sqlglot.expressions as sge
from ibis.backends.sql.compilers.duckdb import DuckDBCompiler

from profile_export.engines.expression import export_expression
from profile_export.engines.rows import WIDE
from profile_export.engines.shape import Shape

_REMEMBERED = 64
_texts: OrderedDict[str, str] = OrderedDict()


class _Compiler(DuckDBCompiler):  # type: ignore[misc] # Ibis has no types
    """Spells `argmax` as DuckDB's own `arg_max`, and wide places as its own 128-bit integers.

    Ibis writes `FIRST(… ORDER BY place DESC)`, which DuckDB turns into comparing texts made of the order. And as
    `arg_max` passes over null values itself, the filter that other engines need only costs: both together took half of
    a wide merge's time. To compare decimals instead of integers would take as much again.
    """

    __slots__ = ()

    def visit_ArgMax(self, op: ops.ArgMax, *, arg: Any, key: Any, where: Any) -> Any:  # noqa: N802 - Ibis' name
        not_null = isinstance(op.where, ops.NotNull) and op.where.arg == op.arg
        return self.agg.arg_max(arg, key, where=None if not_null else where)

    def visit_Cast(self, op: ops.Cast, *, arg: Any, to: Any) -> Any:  # noqa: N802 - Ibis' name
        if to == WIDE:
            return sge.Cast(this=arg, to=sge.DataType(this=sge.DataType.Type.INT128))
        return super().visit_Cast(op, arg=arg, to=to)


def compiled(shape: Shape) -> str:
    """Return the SQL of a shape's expression, remembered: making it can take longer than a small export."""
    text = _texts.pop(shape.key, None) or _text_of(export_expression(shape))
    _texts[shape.key] = text
    if len(_texts) > _REMEMBERED:
        _texts.popitem(last=False)
    return text


def _text_of(expression: ir.Table) -> str:
    compiler = _Compiler()
    text: str = compiler.to_sqlglot(expression.unbind()).sql(dialect=compiler.dialect)
    return text
