"""The options that say what to export: the same for a job and for its estimate."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import typer

from profile_export.cli.command import instant
from profile_export.client import Events, ExportSpec, MembershipStatus, Profiles, Segment, export_spec

_STATUSES = {
    MembershipStatus.Name(number).removeprefix("MEMBERSHIP_STATUS_").lower(): number
    for number in MembershipStatus.values()
    if number != MembershipStatus.MEMBERSHIP_STATUS_UNSPECIFIED
}


def _of_profiles(*names: str, help: str, metavar: str | None = None) -> Any:  # noqa: A002 - typer's word
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Which profiles")


def _of_events(*names: str, help: str, metavar: str | None = None) -> Any:  # noqa: A002 - typer's word
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Their events")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a command line says of an export."""

    to: Annotated[str, typer.Option(metavar="DATASET_ID", help="The union dataset that gets the rows.")]
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="A field to keep, such as person.name. May be given again. Default: all."
        ),
    ] = None
    policy: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="Merge policy. Default: the one set as default, else each primary identity is a profile.",
        ),
    ] = ""
    segment: Annotated[
        list[str] | None,
        _of_profiles(
            metavar="[NAMESPACE:]ID",
            help="Only who is in this segment; given again, in one of them. Default namespace: ups.",
        ),
    ] = None
    status: Annotated[
        list[str] | None,
        _of_profiles(
            metavar="STATUS",
            help="By which status one is in a segment: realized, existing, exited. Default: the first two.",
        ),
    ] = None
    qualified_from: Annotated[
        str, _of_profiles(metavar="TIME", help="Only who last qualified for it then or later.")
    ] = ""
    qualified_to: Annotated[
        str, _of_profiles(metavar="TIME", help="Only who last qualified for it before then.")
    ] = ""
    newer_than: Annotated[
        str, _of_profiles(metavar="TIME", help="Only profiles whose newest record was ingested later.")
    ] = ""
    empty_profiles: Annotated[
        bool, _of_profiles("--empty-profiles", help="Also profiles that have events and no record.")
    ] = False
    batch_per_segment: Annotated[
        bool, _of_profiles("--batch-per-segment", help="A batch of its own for each segment.")
    ] = False
    events: Annotated[bool, _of_events("--events", help="Take the experience events along.")] = False
    event_field: Annotated[
        list[str] | None, _of_events(metavar="PATH", help="A field of events to keep. Default: all.")
    ] = None
    events_from: Annotated[
        str,
        _of_events(metavar="TIME", help="Only events ingested later, such as 2026-01-31T00:00:00Z."),
    ] = ""
    events_to: Annotated[str, _of_events(metavar="TIME", help="Only events ingested until then.")] = ""

    def spec(self, max_run_time: timedelta | None = None) -> ExportSpec:
        """Write it as a request says it; a job may have a limit beside it.

        Raises:
            typer.BadParameter: A time or a status cannot be read.
        """
        statuses = tuple(_status(word) for word in self.status or ())
        profiles = Profiles(
            segments=tuple(_segment(text, statuses) for text in self.segment or ()),
            qualified_from=instant("--qualified-from", self.qualified_from),
            qualified_to=instant("--qualified-to", self.qualified_to),
            newer_than=instant("--newer-than", self.newer_than),
            without_record=self.empty_profiles,
        )
        if statuses and not profiles.segments:
            raise typer.BadParameter("--status says who is in a segment: name one with --segment.")
        events = Events(
            tuple(self.event_field or ()),
            instant("--events-from", self.events_from),
            instant("--events-to", self.events_to),
        )
        return export_spec(
            self.to,
            fields=self.field or (),
            policy_id=self.policy,
            profiles=profiles if profiles != Profiles() else None,
            events=events if self.events or events != Events() else None,
            batch_per_segment=self.batch_per_segment,
            max_run_time=max_run_time,
        )


def _segment(text: str, statuses: tuple[MembershipStatus.ValueType, ...]) -> Segment:
    namespace, _, segment_id = text.rpartition(":")
    return Segment(segment_id, namespace, statuses)


def _status(word: str) -> MembershipStatus.ValueType:
    if word not in _STATUSES:
        raise typer.BadParameter(f"--status {word!r} is none of {', '.join(_STATUSES)}.")
    return _STATUSES[word]
