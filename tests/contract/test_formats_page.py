"""The examples of docs/formats.md."""

import re
from pathlib import Path

import pytest

from profile_export.domain.schemas.instants import parse_day, parse_instant

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()


def table(first: str) -> list[tuple[str, str]]:
    """The rows of the table whose first column has this heading, without backticks."""
    rows = re.search(rf"\| {first} \|.*\n\|.*\n((?:\|.*\n)+)", PAGE)
    assert rows
    cells = [line.strip("|").split(" | ") for line in rows[1].splitlines()]
    return [(one.strip(" `"), other.strip(" `")) for one, other in cells]


@pytest.mark.parametrize(("written", "instant"), table("written"))
def test_an_instant_is_read_in_each_of_its_forms(written: str, instant: str) -> None:
    assert parse_instant(written).isoformat() == instant


@pytest.mark.parametrize(("refused", "complaint"), table("refused"))
def test_anything_else_is_refused_and_told_why(refused: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse_instant(refused)


@pytest.mark.parametrize(
    "text",
    ["", "\N{ARABIC-INDIC DIGIT TWO}026-01-31T00:00:00Z", " 2026-01-31T00:00:00Z", "2026-01-31T00:00:00Z\n"],
)
def test_digits_and_blanks_of_other_kinds_make_no_instant(text: str) -> None:
    with pytest.raises(ValueError, match="is not an instant"):
        parse_instant(text)
    with pytest.raises(ValueError, match="is not a date"):
        parse_day(text.removesuffix("T00:00:00Z\n") + "\n")
