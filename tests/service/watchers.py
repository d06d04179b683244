"""The programs of docs/clients, built and run in folders of their own as docs/clients.md says."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.service.pages import ROOT, page
from tests.service.test_grpcurl import messages_in
from tests.service.test_node import TOUR, installed_node

PAGE = "docs/clients.md"
Moves = list[tuple[int, str]]

# What compiled programs need, by Debian's packages: a command, or a file that the package brings.
NEEDED = {
    "Go": {
        "golang-go": "go",
        "golang-google-grpc-dev": "/usr/share/gocode/src/google.golang.org/grpc",
        "golang-github-golang-protobuf-1-5-dev": "/usr/share/gocode/src/google.golang.org/protobuf/proto",
        "protobuf-compiler": "protoc",
        "protoc-gen-go": "protoc-gen-go",
        "protoc-gen-go-grpc": "protoc-gen-go-grpc",
    },
    "Java": {
        "default-jdk-headless": "javac",
        "libgrpc-java": "/usr/share/java/grpc-netty.jar",
        "libprotobuf-java": "/usr/share/java/protobuf.jar",
        "libnetty-java": "/usr/share/java/netty-codec-http2.jar",
        "libguava-java": "/usr/share/java/guava.jar",
        "libperfmark-java": "/usr/share/java/perfmark-api.jar",
        "libgeronimo-annotation-1.3-spec-java": "/usr/share/java/geronimo-annotation-1.3-spec.jar",
        "protobuf-compiler": "protoc",
        "protobuf-compiler-grpc-java-plugin": "grpc_java_plugin",
    },
}


@dataclass(frozen=True)
class Program:
    """A program of the page: the language is its heading."""

    language: str

    def __str__(self) -> str:
        return self.language

    @property
    def file(self) -> Path:
        _, prose = page(PAGE)
        [target] = re.findall(r"\]\((clients/[^)]+)\)", prose[self.language])
        return ROOT / "docs" / str(target)

    @property
    def commands(self) -> list[str]:
        """What to type; the last one runs it, those before build it."""
        blocks, _ = page(PAGE)
        return [block.text for block in blocks if (block.heading, block.language) == (self.language, "sh")]

    def skip_if_not_installed(self) -> None:
        """Skip what needs more than this machine has, and name it."""
        if self.language == "Node":
            installed_node()
        needed = NEEDED.get(self.language, {})
        missing = [package for package, brought in needed.items() if not is_here(brought)]
        if missing:
            pytest.skip(f"the {self.language} program needs Debian's {', '.join(missing)}")

    async def prepare(self, folder: Path) -> Path:
        """Lay the folder out as the page says, and build the program in it."""
        shutil.copy(self.file, folder)
        (folder / "protos").symlink_to(ROOT / "protos")
        if self.language == "Node":
            (folder / "node_modules").symlink_to(TOUR.parent / "node_modules")
        for command in self.commands[:-1]:
            await typed(command, folder)
        return folder

    @asynccontextmanager
    async def running(self, folder: Path, address: str, job_id: int, sandbox: str) -> AsyncIterator[Watching]:
        """Run it in its folder; whatever happens, it has ended afterwards."""
        command = self.commands[-1].strip().replace("127.0.0.1:50051", address)
        process = await shell(f"job={job_id}; exec {command} {sandbox}", folder)
        try:
            yield Watching(self, process)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


class Watching:
    """A program that runs."""

    def __init__(self, program: Program, process: asyncio.subprocess.Process) -> None:
        self._program, self._process, self._printed = program, process, ""

    async def until(self, revision: int) -> None:
        """Return when it has told the move to a revision."""
        assert self._process.stdout is not None
        told = re.compile(rf'^{revision} |"revision": "{revision}"', re.MULTILINE)
        while not told.search(self._printed):
            chunk = await self._process.stdout.read(65_536)
            assert chunk, await self.end()
            self._printed += chunk.decode()

    async def end(self) -> tuple[int | None, Moves, str]:
        """Return how it ended, the moves that it has told, and its errors."""
        output, errors = await self._process.communicate()
        self._printed += output.decode()
        return self._process.returncode, self._moves(), errors.decode()

    def _moves(self) -> Moves:
        if self._program.language == "grpcurl":
            moves = (
                move for message in messages_in(self._printed) for move in message.get("transitions", ())
            )
            return [(int(move["revision"]), move["to_state"].removeprefix("JOB_STATE_")) for move in moves]
        words = (line.split() for line in self._printed.splitlines())
        return [(int(revision), state) for revision, state in words]


def is_here(brought: str) -> bool:
    return Path(brought).exists() if brought.startswith("/") else shutil.which(brought) is not None


async def typed(command: str, folder: Path) -> None:
    """Type a command that must succeed."""
    process = await shell(command, folder)
    output, errors = await process.communicate()
    assert process.returncode == 0, (output.decode(), errors.decode())


async def shell(script: str, folder: Path) -> asyncio.subprocess.Process:
    """Begin a shell in a folder, with this environment's programs first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    pipe = asyncio.subprocess.PIPE
    words: Iterable[str] = ("bash", "-euo", "pipefail", "-c", script)
    return await asyncio.create_subprocess_exec(
        *words,
        cwd=folder,
        env=os.environ | {"PATH": path},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
    )
