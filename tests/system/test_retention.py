"""What retention has removed, as the command line tells it."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tests.system.terminal import Terminal, served

DAY = timedelta(days=1) // timedelta(microseconds=1)


@pytest.mark.slow
def test_an_expired_job_and_an_expired_batch_say_what_happened_and_when(tmp_path: Path) -> None:
    # given a source that keeps batches for a day, and an export
    (tmp_path / "crm.jsonl").write_text('{"crmId": "C-1"}\n')
    with served(tmp_path, "--job-retention-days", "2") as (_, address):
        terminal = Terminal(address, "prod")
        make = ("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
        source = terminal.get(*make, "--keep-batches-days", "1")
        terminal.get("datasets", "upload", source, tmp_path / "crm.jsonl", "--batch-id", "one")
        people = terminal.get("datasets", "create", "People", "--kind", "union")
        assert "SUCCEEDED" in terminal.get("jobs", "create", "--to", people, "--watch")
        assert "\nexpires\t" in terminal.get("jobs", "show", "1")

    # when two days pass
    with closing(sqlite3.connect(tmp_path / "data" / "store.sqlite")) as store, store:
        store.execute("UPDATE batches SET ingest_time = ingest_time - ?", [2 * DAY])
        store.execute("UPDATE jobs SET end_time = end_time - ?", [2 * DAY])
    with served(tmp_path, "--job-retention-days", "2") as (_, address):
        terminal = Terminal(address, "prod")
        while (shown := terminal.type("jobs", "show", "1")).returncode == 0:
            pass
        batch = terminal.get("batches", "show", "one")
        batches = terminal.get("batches", "list", people).splitlines()

    # then the job says when it went, the batch when and why, and what was exported is there
    assert shown.stderr.count("\n") == 1
    assert "The job 1 has expired: it was removed at 20" in shown.stderr
    facts = [" ".join(line.split()) for line in batch.splitlines()]
    assert facts[0] == "batch one EXPIRED"
    assert any(fact.startswith("expired 20") for fact in facts)
    assert "reason Expired: its dataset keeps batches for 1 day." in facts
    assert len(batches) == 2
