"""Receipts checked offline, against the output of real exports."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from profile_export.client import Client
from tests.system.terminal import Terminal


@dataclass(frozen=True)
class Exported:
    """A copy of the folder of an exported batch."""

    folder: Path
    terminal: Terminal

    @property
    def receipt(self) -> Path:
        return self.folder / "receipt.json"

    @property
    def file(self) -> Path:
        [path] = self.folder.rglob("*.parquet")
        return path

    @property
    def name(self) -> str:
        return str(self.file.relative_to(self.folder))

    def verify(self) -> tuple[int, list[str]]:
        done = self.terminal.type("jobs", "verify", self.receipt)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    def rewrite(self, change: Callable[[dict[str, Any]], None]) -> None:
        document = json.loads(self.receipt.read_text())
        change(document)
        self.receipt.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def original(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export three people; return the folder of the batch."""
    terminal = Terminal(address, "verify")
    people = tmp_path_factory.mktemp("people") / "crm.jsonl"
    people.write_text("".join(f'{{"crmId": "C-{number}"}}\n' for number in range(3)))
    crm = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "crmId=CRM")
    terminal.get("datasets", "upload", crm, people)
    union = terminal.get("datasets", "create", "Merged", "--kind", "union")
    job_id = int(terminal.get("jobs", "create", "--to", union))
    terminal.type("jobs", "watch", str(job_id))
    # The next job begins when everything about this one is on the disk.
    terminal.get("jobs", "create", "--to", union, "--watch")
    return asyncio.run(folder_of(address, job_id))


async def folder_of(address: str, job_id: int) -> Path:
    async with Client(address, sandbox="verify") as client:
        job = await client.get_job(job_id)
        location = (await client.get_receipt(job.batch_id)).location
    return Path(unquote(urlsplit(location).path)).parent


@pytest.fixture
def exported(original: Path, tmp_path: Path) -> Exported:
    folder = tmp_path / "copy"
    shutil.copytree(original, folder)
    return Exported(folder, Terminal("127.0.0.1:1", "nowhere"))


def test_an_export_is_what_its_receipt_says_and_needs_no_server_for_that(exported: Exported) -> None:
    code, [line] = exported.verify()

    assert code == 0
    assert line.startswith("Checked 1 file, 3 rows, ")
    assert line.endswith(": all as the receipt says.")


def test_a_file_under_its_name_as_in_a_download_is_found(exported: Exported) -> None:
    exported.file.rename(exported.folder / exported.file.name)

    assert exported.verify()[0] == 0


def test_a_flipped_byte_is_found(exported: Exported) -> None:
    content = bytearray(exported.file.read_bytes())
    content[len(content) // 2] ^= 1
    exported.file.write_bytes(content)

    code, [finding, summary] = exported.verify()

    assert code == 1
    assert finding.startswith(f"{exported.name}: has the SHA-256 ")
    assert summary.endswith("findings: 1.")


def test_a_file_that_was_cut_off_is_found(exported: Exported) -> None:
    size = exported.file.stat().st_size
    exported.file.write_bytes(exported.file.read_bytes()[:-1])

    code, [of_bytes, of_hash, _] = exported.verify()

    assert code == 1
    assert of_bytes == f"{exported.name}: has {size - 1} bytes, the receipt says {size}."
    assert "SHA-256" in of_hash


def test_a_missing_file_is_found(exported: Exported) -> None:
    name = exported.name
    exported.file.unlink()

    assert exported.verify()[1][0] == f"{name}: is missing."


@pytest.mark.parametrize(("counted", "found"), [("rows", "3 rows"), ("bytes", "bytes")])
def test_a_wrong_count_is_found(exported: Exported, counted: str, found: str) -> None:
    def count_wrong(document: dict[str, Any]) -> None:
        document["files"][0][counted] = 4

    exported.rewrite(count_wrong)

    code, [finding, _] = exported.verify()

    assert code == 1
    assert finding.startswith(f"{exported.name}: has ")
    assert finding.endswith(f"{found}, the receipt says 4.")


def test_a_parquet_file_that_is_not_listed_is_found(exported: Exported) -> None:
    shutil.copy(exported.file, exported.folder / "more.parquet")

    code, [finding, _] = exported.verify()

    assert (code, finding) == (1, "more.parquet: is not in the receipt.")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"form": 1, "batch_id": "b", "files": [{}]}'])
def test_what_is_no_receipt_is_told(exported: Exported, content: str) -> None:
    exported.receipt.write_text(content)

    assert exported.verify()[1][0] == "receipt.json: is no receipt."


def test_a_receipt_of_a_later_form_is_told(exported: Exported) -> None:
    exported.rewrite(lambda document: document.update(form=2))

    assert exported.verify()[1][0] == "receipt.json: is a receipt of form 2; this version knows form 1."


def test_a_receipt_that_is_not_there_is_one_line(exported: Exported) -> None:
    done = exported.terminal.type("jobs", "verify", exported.folder / "none.json")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().endswith("No such file or directory")
