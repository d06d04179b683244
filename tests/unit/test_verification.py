"""What is told of a file that is not what its receipt says."""

from __future__ import annotations

import pytest

from profile_export.domain.export.receipt import FoundFile, ReceiptFile, differences

LISTED = ReceiptFile("1/0-0.parquet", "0-0.parquet", rows=3, bytes=300, sha256="ab")


def test_a_file_that_is_as_listed_is_no_finding() -> None:
    assert list(differences(LISTED, FoundFile(300, "ab", 3))) == []


@pytest.mark.parametrize(
    ("found", "findings"),
    [
        (None, ["is missing."]),
        (FoundFile(300, "cd", 3), ["has the SHA-256 cd, the receipt says ab."]),
        (
            FoundFile(299, "cd", None),
            ["has 299 bytes, the receipt says 300.", "has the SHA-256 cd, the receipt says ab."],
        ),
        (FoundFile(301, "ab", 3), ["has 301 bytes, the receipt says 300."]),
        (FoundFile(300, "ab", 4), ["has 4 rows, the receipt says 3."]),
        (FoundFile(300, "ab", None), ["cannot be read as Parquet."]),
    ],
)
def test_a_file_that_is_not_as_listed_is_told_a_line_for_each_difference(
    found: FoundFile | None, findings: list[str]
) -> None:
    assert list(differences(LISTED, found)) == [f"1/0-0.parquet: {finding}" for finding in findings]
