"""The page about reading the output, block by block."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from profile_export.client import Client
from tests.service.pages import ROOT, page, served, type_in

PAGE = "docs/reading-the-output.md"
NOT_RUN = {"scala", "sql", "properties"}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with served(tmp_path) as listening:
        yield listening


async def until_mirrored(address: str) -> None:
    async with Client(address) as client:
        while any(dataset.mirror.pending_changes for dataset in await client.list_datasets()):
            pass


@pytest.mark.timeout(300)  # types the README's tour first
@pytest.mark.slow
def test_the_blocks_run_as_they_stand(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given the README's tour, and a table that has followed
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # or it writes that the other is not installed
    tour = [block for block in page("README.md")[0] if block.heading in {"Tour", "With the command line"}]
    typed = [block for block in tour if block.language == "sh"]
    assert len(typed) == 2
    kept = type_in(
        "".join(block.text for block in typed) + "echo kept $people $policy $dir\n", address, tmp_path
    ).splitlines()[-1]
    asyncio.run(until_mirrored(address))

    # when the page's blocks are typed, the Python ones as one script
    blocks, _ = page(PAGE)
    script = tmp_path / "reading.py"
    script.write_text(
        "".join(block.text for block in blocks if block.language == "python")
        .replace("127.0.0.1:50051", address)
        .replace("sqlite:///.data", f"sqlite:///{tmp_path / 'data'}")
    )
    _, people, policy, folder = kept.split()
    names = f'people={people} policy={policy} dir={folder}\nexport PATH="$PWD/.venv/bin:$PATH"\n'
    printed = type_in(f"python {script}\n", address, tmp_path)
    shell = type_in(
        names + "".join(block.text for block in blocks if block.language == "sh"), address, tmp_path
    )

    # then they find the two people of the tour, each way
    assert re.search(r"│ C-1 +│ Adler +│ +2 │", printed)
    assert printed.count('{"gold"}') == 2  # Polars, in place and in the table
    assert len(re.findall(r"\.parquet True True", printed)) == 1
    assert [line for line in printed.splitlines() if line.isdigit()] == ["2", "2", "2"]
    assert shell.splitlines()[-1] == "[(2,)]"
    assert {block.language for block in blocks} == {"python", "sh"} | NOT_RUN


def test_blocks_that_are_not_run_say_so_and_the_page_is_linked() -> None:
    text = (ROOT / PAGE).read_text()

    for language in NOT_RUN:
        for before in text.split(f"```{language}\n")[:-1]:
            assert "Not run" in before.rsplit("\n## ", 1)[-1]
    assert f"({PAGE})" in (ROOT / "README.md").read_text()
