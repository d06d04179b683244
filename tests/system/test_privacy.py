"""What a server writes is for its own user alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.system.terminal import Terminal, served


def done(terminal: Terminal, *words: str | Path) -> None:
    command = terminal.type(*words)
    assert command.returncode == 0, command.stderr


@pytest.mark.slow
def test_nobody_else_can_read_what_a_server_has_written(tmp_path: Path) -> None:
    # given a folder of an older version, open to all
    data = tmp_path / "data"
    (data / "lake").mkdir(parents=True)
    data.chmod(0o755)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "1"}\nno json\n')
    former = os.umask(0o022)
    try:
        # when a server takes rows and exports them
        with served(tmp_path) as (_, address):
            terminal = Terminal(address, "prod")
            source = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "id=Test")
            done(terminal, "datasets", "upload", source, rows, "--batch-id", "b", "--max-bad-records", "1")
            union = terminal.get("datasets", "create", "Golden", "--kind", "union")
            done(terminal, "jobs", "create", "--to", union, "--watch")
            done(terminal, "datasets", "download", source, "--to", tmp_path / "out")
    finally:
        os.umask(former)

    # then all is its own, and what the caller fetched is as the caller has it
    written = [data, *data.rglob("*")]
    kinds = {path.name.rpartition(".")[2] for path in written}
    assert {"sqlite", "parquet", "json", "lock"} <= kinds
    assert [path for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077] == [data / "lake"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in (tmp_path / "out").rglob("*.parquet"))
