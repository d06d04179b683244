"""docs/operations.md, taken at its word: its commands start what it says, and what it names is there."""

from __future__ import annotations

import asyncio
import re
import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.databases import Postgres
from tests.service.pages import ROOT, page
from tests.system.terminal import started

PAGE = "docs/operations.md"
SOURCE = "\n".join(path.read_text() for path in (ROOT / "src" / "profile_export").rglob("*.py"))


@pytest.mark.slow
async def test_the_processes_of_the_page_start_beside_one_another(tmp_path: Path, postgres: Postgres) -> None:
    [block] = page(PAGE)[0]
    async with postgres.database(with_tables=False) as url:
        for asked, put in (
            ("/srv/exports", str(tmp_path)),
            ("postgresql://exports@db/exports", url),
            ("127.0.0.1:5005", "127.0.0.1:0 #"),
        ):
            assert asked in block.text
            block = block.__class__(block.heading, block.language, block.text.replace(asked, put))
        told = await asyncio.to_thread(ready_lines, block.text.splitlines(), tmp_path / "log")

    assert [line.split(":")[0] for line in told] == ["listening on 127.0.0.1"] * 2 + ["working"]


def ready_lines(commands: list[str], log: Path) -> list[str]:
    """Start processes, return the line that each says when it is ready, and stop them."""
    with ExitStack() as running:
        both = [
            running.enter_context(started(shlex.split(command, comments=True)[1:], log))
            for command in commands
        ]
        for process, _ in both:
            process.terminate()
        assert [process.wait(30) for process, _ in both] == [0] * len(both), log.read_text()
        return [line for _, line in both]


def test_every_code_and_event_of_the_tables_is_one_that_the_product_writes() -> None:
    _, prose = page(PAGE)
    named = {
        name
        for heading in ("When a job fails", "What the log says")
        for line in prose[heading].splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }

    assert len(named) > 15
    assert {name for name in named if f'"{name}"' not in SOURCE} == set()


def test_every_error_that_ends_an_attempt_is_in_the_table() -> None:
    failures = (ROOT / "src/profile_export/engines/duckdb/session.py").read_text()
    worker = (ROOT / "src/profile_export/runner/worker.py").read_text()
    codes = set(re.findall(r'Failed\(\s*"([A-Z_]+)"', failures)) | set(
        re.findall(r'"([A-Z]+_?[A-Z]+)"', worker)
    )

    assert len(codes) > 6
    assert {code for code in codes if f"`{code}`" not in page(PAGE)[1]["When a job fails"]} == set()


def test_every_option_of_the_page_exists() -> None:
    text = (ROOT / PAGE).read_text()
    options = set(re.findall(r"--[a-z][a-z-]+", text))

    assert len(options) > 5
    assert {one for one in options if one[2:].replace("-", "_") not in SOURCE} == set()
