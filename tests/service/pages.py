"""Pages of documentation, taken at their word: blocks of code, a server as they start it, a shell to type into."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Block:
    heading: str
    language: str
    text: str


def page(path: str) -> tuple[list[Block], dict[str, str]]:
    """Return a page's blocks of code, and its prose by heading."""
    blocks: list[Block] = []
    prose: dict[str, str] = {}
    heading, language, lines = "", "", list[str]()
    for line in (ROOT / path).read_text().splitlines():
        if line.startswith("```") and language:
            blocks.append(Block(heading, language, "\n".join(lines) + "\n"))
            language = ""
        elif line.startswith("```"):
            language, lines = line.removeprefix("```"), []
            assert language, f"a block of code without a language under {heading!r}"
        elif language:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
        else:
            prose[heading] = prose.get(heading, "") + line + "\n"
    return blocks, prose


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Start a server as the README says, with its data in `data` in the folder; yield where it listens."""
    serve = ("serve", "--data-dir", str(folder / "data"), "--grpc-address", "127.0.0.1:0")
    command = [sys.executable, "-m", "profile_export", *serve]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            yield server.stdout.readline().removeprefix("listening on ").strip()
        finally:
            server.terminate()
    assert server.returncode == 0, (folder / "log").read_text()


def run(blocks: list[Block], address: str, folder: Path) -> str:
    """Type the blocks into one shell, in the checkout; return what they print."""
    return type_in("".join(block.text for block in blocks), address, folder)


def type_in(script: str, address: str, folder: Path) -> str:
    """Type a script into a shell, in the checkout; return what it prints."""
    script = script.replace("127.0.0.1:50051", address)
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=os.environ
        | {"PROFILE_EXPORT_ADDRESS": address, "TMPDIR": str(folder), "XDG_CONFIG_HOME": str(folder)}
        | {"PATH": ":".join(paths)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}\n{done.stderr}"
    return done.stdout
