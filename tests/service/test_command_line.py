"""The page on the command line, taken at its word."""

from pathlib import Path

import pytest

from tests.service.pages import ROOT, page, served, type_in

PAGE = "docs/command-line.md"


@pytest.mark.slow
def test_the_blocks_run_as_they_stand_and_show_what_the_page_shows(tmp_path: Path) -> None:
    blocks, _ = page(PAGE)
    script = "".join(block.text for block in blocks if block.language == "sh")

    with served(tmp_path) as address:
        # An option beats the variable of the address, and the context beats neither.
        printed = type_in(f"dir={tmp_path}\n{script}", address, tmp_path)

    for block in blocks:
        if block.language == "text":
            assert all(line in printed for line in block.text.splitlines())
    assert "SUCCEEDED" in printed


def test_the_page_is_linked() -> None:
    assert f"({PAGE})" in (ROOT / "README.md").read_text()
