"""The examples of docs/formats.md."""

import json
import re
from pathlib import Path

import pytest

from profile_export.cli.sources import find_sources
from profile_export.domain.catalog.batches import Reading
from profile_export.domain.catalog.datasets import IdentityField
from profile_export.domain.schemas.instants import parse_day, parse_instant
from tests.contract.ingesting import Uploader

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


def test_placeholders_are_read_as_absent(tmp_path: Path) -> None:
    sent, stored = (
        [json.loads(line) for line in block.splitlines()]
        for block in re.findall(r"```jsonl\n(.*?)```", PAGE, re.DOTALL)
    )
    uploader = Uploader(tmp_path)

    result = uploader.ingest(
        sent, IdentityField(("id",), "CRM", primary=True), reading=Reading(("NULL", "n/a"))
    )

    found = {row["id"]: row for row in uploader.values(result)}
    assert [{name: found[row["id"]].get(name) for name in row} for row in stored] == stored


@pytest.mark.parametrize(("suffixes", "said"), table("suffix"))
def test_files_of_a_folder_are_taken_by_their_suffix(tmp_path: Path, suffixes: str, said: str) -> None:
    for suffix in suffixes.split("`, `"):
        for begin, known_as in (("[", "a JSON array"), ("{", "JSON lines")):
            folder = tmp_path / begin / suffix
            folder.mkdir(parents=True)
            path = folder / f"file{suffix}"
            path.write_text(begin)

            [found], _ = find_sources([folder], None)

            expected = known_as if suffix == ".json" else said
            assert found.format.name.replace("_", " ").lower() == expected.removeprefix("a ").lower()
