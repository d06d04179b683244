"""Page requests as the door reads them."""

from __future__ import annotations

from profile_export.domain.lists import PageRequest, Seal

KEY = bytes(range(32))


def page_of(size: int = 0, token: str = "", *bound_to: str) -> PageRequest:
    """The page of a list that is asked for; the tokens of one hold for the same `bound_to` only."""
    return PageRequest.of(size, token, Seal(KEY, bound_to))
