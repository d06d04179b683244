"""Estimates as messages. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from profile_export.api.convert_jobs import export_spec
from profile_export.api.estimates import Estimated
from profile_export.api.suggestions import nearest_paths
from profile_export.api.values import rows_that_fit
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.estimate import Figure
from profile_export.domain.request import BoundRequest
from profile_export.domain.selection import UnknownPath
from profile_export.v1 import export_service_pb2 as pb

_MOST_SAMPLE_ROWS = 100


def sample_rows(request: pb.EstimateJobRequest) -> int:
    """Read how many rows are wanted.

    Raises:
        InvalidArgumentError: The number is not between 0 and 100.
    """
    if not 0 <= request.sample_rows <= _MOST_SAMPLE_ROWS:
        raise InvalidArgumentError.of_field("sample_rows", f"must be between 0 and {_MOST_SAMPLE_ROWS}.")
    return request.sample_rows


def estimate_job(
    bound: BoundRequest, found: Estimated, unknown: Sequence[UnknownPath]
) -> pb.EstimateJobResponse:
    """Write what a job would do."""
    figures = found.estimate
    return pb.EstimateJobResponse(
        spec=export_spec(bound),
        profiles=_figure(figures.profiles),
        events=_figure(figures.events),
        rows=_figure(figures.rows),
        bytes=_figure(figures.bytes),
        files=_figure(figures.files),
        left_out=[
            pb.LeftOutFigure(reason=reason, profiles=_figure(figure))
            for reason, figure in figures.left_out.items()
        ],
        unknown_fields=[
            pb.UnknownField(path=one.path, nearest=nearest)
            for one, nearest in zip(unknown, nearest_paths(unknown), strict=True)
        ],
        sample_rows=rows_that_fit(found.rows),
        notes=found.notes,
    )


def _figure(value: Figure) -> pb.Figure:
    exactness = pb.EXACTNESS_EXACT if value.exact else pb.EXACTNESS_ESTIMATED
    return pb.Figure(value=value.value, exactness=exactness, at_least=value.at_least, at_most=value.at_most)
