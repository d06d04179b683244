"""The known field path that is nearest to an unknown one, told with the refusal of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import extractOne

from profile_export.domain.export.selection import UnknownFieldError, UnknownPath

MOST_SUGGESTIONS = 5
"""How many unknown paths of one request get a suggestion: whoever sends more of them has not mistyped them all."""
# Comparing takes time by both lengths, and what differs later than this is no slip of the pen.
_MOST_COMPARED = 200
# Nothing else runs in the process while one call compares.
_COMPARED_AT_ONCE = 500
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def nearest_path(unknown: UnknownPath) -> str:
    """Return the known path of the least edit distance, the first in UTF-8 of several; empty if nothing is known."""
    path = unknown.path.strip()[:_MOST_COMPARED]
    # Code points sort as their UTF-8 does.
    known = sorted(unknown.candidates())
    nearest, least = "", _MOST_COMPARED + 1
    for start in range(0, len(known), _COMPARED_AT_ONCE):
        some = known[start : start + _COMPARED_AT_ONCE]
        found = extractOne(
            path,
            [one[:_MOST_COMPARED] for one in some],
            scorer=Levenshtein.distance,
            score_cutoff=least - 1,
        )
        if found is not None:
            _, least, place = found
            nearest = some[place]
        if least == 0:
            break
    return nearest


def nearest_paths(unknown: Sequence[UnknownPath]) -> Sequence[str]:
    """Return a suggestion for each of the first unknown paths of a request, and empty text for the others."""
    told = [nearest_path(one) for one in unknown[:MOST_SUGGESTIONS]]
    return [*told, *[""] * (len(unknown) - len(told))]


def suggesting(work: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a function that resolves field paths tell the nearest known one with an unknown one."""

    @wraps(work)
    def suggest(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        try:
            return work(*args, **kwargs)
        except UnknownFieldError as error:
            raise error.with_nearest(nearest_path(error.unknown)) from None

    return suggest
