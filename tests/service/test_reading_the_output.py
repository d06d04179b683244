"""The page about reading the output, block by block."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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


def test_every_recipe_has_the_columns_of_all_batches(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # given two batches, of which the later one has columns, and members of objects, that the first one has not
    name = pa.struct([("firstName", pa.string()), ("lastName", pa.string())])
    fuller = {
        "crmId": ["C-2"],
        "_batch_id": ["2"],
        "_profile_id": ["p2"],
        "person": pa.array([{"name": {"firstName": "Bo", "lastName": "Adler"}}], pa.struct([("name", name)])),
        "loyalty": [{"tier": "gold"}],
        "timeSeriesEvents": [[{"_id": "e"}]],
    }
    person = pa.array([{"name": {"firstName": "Al"}}])
    early = {"crmId": ["C-1"], "_batch_id": ["1"], "_profile_id": ["p1"], "person": person}
    paths = [tmp_path / "out" / batch / "0.parquet" for batch in ("1", "2")]
    for path, columns in zip(paths, (early, fuller), strict=True):
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), path)

    # when the recipes of both pages are typed
    blocks = [block for block in page(PAGE)[0] if block.language == "python"]
    recipes = [block.text for block in blocks if "paths" in block.text and "profile_export" not in block.text]
    in_python = "\n".join(["import duckdb", *recipes])
    exec(in_python, {"paths": [str(path) for path in paths]})
    lines = [
        line for block in page("README.md")[0] for line in block.text.splitlines() if "$dir/out/" in line
    ]
    by_hand = [line for line in lines if line.startswith("python -c")]
    printed = type_in(f"dir={tmp_path}\n" + "\n".join(by_hand) + "\n", "", tmp_path)

    # then each has both people, and what the later one alone has
    assert len(recipes) == 5
    assert len(by_hand) == 3
    shown = capfd.readouterr().out
    assert re.search(r"│ C-2 +│ Adler +│ +1 │", shown)
    assert '{"gold"}' in shown
    assert [line for line in shown.splitlines() if line.isdigit()] == ["2"]
    assert re.search(r"│ C-2 +│ Bo +│ Adler +│ gold +│ +1 │", printed)
    assert '{{"Al",null}}' in printed
    assert "'loyalty', 'timeSeriesEvents'" in printed
