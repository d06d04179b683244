"""Listing the experience events of one person: which of them, in which order, a page at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.filtering import Filter, Order, Reader, instant, read_filter, read_order
from profile_export.domain.identity import Identity
from profile_export.domain.lookup import person_of
from profile_export.domain.merge import Profile, written_event
from profile_export.domain.paging import Page, PageRequest, cut_page, refused_token
from profile_export.domain.plan import ExportPlan
from profile_export.domain.resolution import Place, Row, SourceRow
from profile_export.domain.schema import EVENT_ID, EVENT_TIME

_TIME_ORDER = "event_time"
_EventKey = tuple[datetime, str, str, Place]


@dataclass(frozen=True, slots=True)
class FoundEvent:
    """One experience event of a person; `values` is what an export would attach, empty if no field is left."""

    id: str
    event_time: datetime
    ingest_time: datetime
    dataset_id: str
    values: Profile


@dataclass(frozen=True, slots=True)
class EventListing:
    """Which events of a person are listed, and in which order: those that happened in [start, end), None for open."""

    start_time: datetime | None
    end_time: datetime | None
    filter: Filter
    order: Order

    @classmethod
    def of(
        cls, start_time: datetime | None, end_time: datetime | None, filter_text: str, order_text: str
    ) -> EventListing:
        """Read what a caller asks for; the oldest come first unless the order says otherwise.

        Raises:
            InvalidArgumentError: The filter or the order is wrong, or the start is later than the end.
        """
        if start_time and end_time and start_time > end_time:
            raise InvalidArgumentError.of_field(
                "start_time", "is later than end_time.", "TIME_WINDOW_INVALID"
            )
        known: dict[str, Reader] = {"dataset_id": str, "id": str, "ingest_time": instant}
        order = read_order(order_text, (_TIME_ORDER,)) or Order(_TIME_ORDER)
        return cls(start_time, end_time, read_filter(filter_text, known), order)

    def lists(self, event: Row) -> bool:
        """Say whether an event is among those asked for."""
        happened = event.value[EVENT_TIME]
        told = {"dataset_id": event.dataset_id, "id": event.value[EVENT_ID], "ingest_time": event.ingest_time}
        return (
            (self.start_time is None or self.start_time <= happened)
            and (self.end_time is None or happened < self.end_time)
            and all(condition.holds(told[condition.field]) for condition in self.filter)
        )


def events_of(
    plan: ExportPlan,
    rows: Iterable[SourceRow],
    identity: Identity,
    listing: EventListing,
    request: PageRequest,
) -> Page[FoundEvent]:
    """List a page of the events of one profile, in the order of S17 or the reverse, each `_id` once (S16).

    Args:
        plan: As `plan_events` makes it.
        rows: As `person_of`.
        identity: As `person_of`.
        listing: Which of them.
        request: Which page.

    Raises:
        NotFoundError: As `person_of`.
        FailedPreconditionError: As `person_of`.
        InvalidArgumentError: The page token was made up.
    """
    after = _read_cursor(request) if request.cursor else None
    latest_first = listing.order.descending
    listed = sorted(
        (event for event in person_of(plan, rows, identity).events if listing.lists(event)),
        key=_key,
        reverse=latest_first,
    )
    if after:
        listed = [event for event in listed if (_key(event) < after if latest_first else _key(event) > after)]
    page = cut_page(listed[: request.size + 1], request, _cursor)
    return page.turned(lambda event: _found(plan, event))


def _key(event: Row) -> _EventKey:
    return event.value[EVENT_TIME], event.value[EVENT_ID], event.dataset_id, event.place


def _cursor(event: Row) -> str:
    happened, *rest = _key(event)
    return json.dumps([happened.isoformat(), *rest])


def _read_cursor(request: PageRequest) -> _EventKey:
    try:
        happened, event_id, dataset_id, (number, row) = json.loads(request.cursor)
        return instant(happened), str(event_id), str(dataset_id), Place(int(number), int(row))
    except (ValueError, TypeError):
        raise refused_token() from None


def _found(plan: ExportPlan, event: Row) -> FoundEvent:
    selection = plan.events
    values = written_event(plan, selection, event) if selection else None
    return FoundEvent(
        event.value[EVENT_ID], event.value[EVENT_TIME], event.ingest_time, event.dataset_id, values or {}
    )
