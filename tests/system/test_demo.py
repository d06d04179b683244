"""The demo, as somebody who has just cloned the repository sees it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def _demo(temporary: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "profile_export", "demo", *options],
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_demo_shows_an_export_from_sources_to_rows_and_cleans_up(tmp_path: Path) -> None:
    done = _demo(tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) < 300  # a pipe is a thousand wide, and nothing fills it up
    told = re.sub(r" {2,}", "  ", done.stdout)
    for line in (
        "CRM  1,433 records",
        "Web shop  1,344 records",
        "Newsletter  820 records",
        "Web  6,000 events",
        "PROCESSING → SUCCEEDED",
        "2,000 of 2,150 exported",
        "left out  events only 150",
        "fragments  3,597 read",
        "timeSeriesEvents",
        "total",
        "100%",
        "import duckdb",
    ):
        assert line in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo_leaves_its_files_when_told_to(tmp_path: Path) -> None:
    done = _demo(tmp_path, "--keep")

    assert done.returncode == 0
    (folder,) = tmp_path.iterdir()
    assert f"The folder stays: {folder}" in done.stdout
    lines = done.stdout.splitlines()
    enter, read = (next(line.strip() for line in lines if word in line) for word in ("cd /", "import duckdb"))
    again = subprocess.run(
        f"{enter} && {read.replace('python', sys.executable, 1)}",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines()[0].strip() in done.stdout
