"""The unions of tenants' sources as they were last, so that one source more is looked at beside them alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeAlias

from profile_export.domain.catalog import DatasetKind
from profile_export.domain.registered import field_count
from profile_export.domain.schema import ObjectType

Unions: TypeAlias = Mapping[DatasetKind, ObjectType]
_MOST_FIELDS = 200_000


class KeptUnions:
    """Unions by tenant, each at one revision of what the tenant's sources know: those used last."""

    def __init__(self, most_fields: int = _MOST_FIELDS) -> None:
        """Keep those of so many fields together."""
        self._most, self._fields = most_fields, 0
        self._kept: OrderedDict[int, tuple[int, Unions, int]] = OrderedDict()

    def at(self, tenant_id: int, revision: int) -> Unions | None:
        """Return the unions at a revision; None if others are kept, or none."""
        kept_at, unions, _ = self._kept.get(tenant_id, (None, None, 0))
        if kept_at != revision:
            return None
        self._kept.move_to_end(tenant_id)
        return unions

    def keep(self, tenant_id: int, revision: int, unions: Unions) -> None:
        """Keep the unions at a revision that is committed, instead of those at another one."""
        _, before, fields = self._kept.pop(tenant_id, (None, None, 0))
        self._fields -= fields
        if before is None or any(before[kind] is not union for kind, union in unions.items()):
            # One more for each, so that empty ones count, too.
            fields = sum(field_count(union) + 1 for union in unions.values())
        self._kept[tenant_id] = revision, unions, fields
        self._fields += fields
        while self._fields > self._most:
            _, (_, _, fields) = self._kept.popitem(last=False)
            self._fields -= fields
