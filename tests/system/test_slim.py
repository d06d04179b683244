"""The command line and the client without the server's packages: calls work, and the rest says what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.terminal import Terminal, environment

# Refuses what only a server needs, as an interpreter does that has not got it.
WITHOUT = """
import sys

OURS = {"app", "api", "application", "ingest", "store", "lake", "engines", "processes", "runner", "domain", "config"}
OTHERS = {"duckdb", "pyarrow", "sqlalchemy", "ibis", "numpy", "scipy", "pyiceberg", "structlog", "alembic",
          "cachetools", "rapidfuzz", "jsonschema_rs", "sqlglot", "aiosqlite", "grpc_health", "grpc_reflection"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top in OTHERS or top == "profile_export" and rest.split(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
RUN = f"{WITHOUT}\nfrom profile_export.__main__ import main\nmain()"


def run(code: str, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environment(**variables)
    )


def test_the_client_is_imported_without_any_of_the_server() -> None:
    done = run(f"{WITHOUT}\nfrom profile_export.client import Client\nprint(Client.__name__)")

    assert (done.stdout.strip(), done.stderr) == ("Client", "")


@pytest.mark.slow
def test_calls_are_made_without_any_of_the_server(terminal: Terminal, tmp_path: Path) -> None:
    # given a source
    (tmp_path / "crm.jsonl").write_text('{"crmId": "C-1", "name": "Ada"}\n')

    def type_(*words: str | Path) -> str:
        typed = (*words, "--sandbox", terminal.sandbox)
        done = run(RUN, *typed, PROFILE_EXPORT_ADDRESS=terminal.address)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.strip()

    # when it is filled, exported and fetched
    crm = type_("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    people = type_("datasets", "create", "People", "--kind", "union")
    uploaded = type_("datasets", "upload", crm, tmp_path / "crm.jsonl", "--json")
    watched = type_("jobs", "create", "--to", people, "--watch")
    type_("datasets", "download", people, "--to", tmp_path / "out")

    # then it is all there
    assert '"SUCCEEDED"' in uploaded or "BATCH_STATE_SUCCEEDED" in uploaded
    assert "SUCCEEDED" in watched
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--data-dir", "data"),
        pytest.param(
            ("worker", "--data-dir", "data", "--database-url", "postgresql:///x"), marks=pytest.mark.slow
        ),
        ("db", "status", "--data-dir", "data"),
        pytest.param(("db", "upgrade", "--data-dir", "data"), marks=pytest.mark.slow),
        pytest.param(("db", "check", "--data-dir", "data"), marks=pytest.mark.slow),
        ("jobs", "verify", "receipt.json"),
        ("demo",),
    ],
    ids=" ".join,
)
def test_what_needs_the_server_says_in_one_sentence_what_to_install(words: tuple[str, ...]) -> None:
    done = run(RUN, *words)

    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("profile-export: This command needs the server, which is not installed")
    assert line.endswith(": pip install profile-export")


@pytest.mark.slow
def test_help_and_version_need_nothing_of_the_server() -> None:
    for words in (("--help",), ("--version",), ("serve", "--help"), ("demo", "--help"), ("jobs", "--help")):
        done = run(RUN, *words)

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout
