"""Clients in other languages watch a job: the programs of docs/clients as they stand, and grpclib."""

from __future__ import annotations

import importlib.util
import re
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc.aio
import grpc_tools
import pytest
import pytest_asyncio
from grpc_tools import protoc
from grpclib.client import Channel
from grpclib.exceptions import StreamTerminatedError

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import dataset_pb2, job_pb2
from profile_export.v1 import export_service_pb2 as es
from tests.service.conftest import settings_for
from tests.service.engines import Gate, GatedEngine, go_on, real_engine
from tests.service.harness import Caller
from tests.service.pages import ROOT, page
from tests.service.watchers import NEEDED, PAGE, Program
from tests.system.line import Line

ONE_ATTEMPT = [(1, "NEW"), (2, "PROCESSING"), (3, "SUCCEEDED")]
TWO_ATTEMPTS = [(1, "NEW"), (2, "PROCESSING"), (3, "NEW"), (4, "PROCESSING"), (5, "SUCCEEDED")]
STAGED = "prod"

LANGUAGES = ("Python", "grpcurl", "Node", "Go", "Java")
BUILT = [pytest.mark.slow, pytest.mark.timeout(300)]
PROGRAMS = [
    pytest.param(Program(language), id=language, marks=BUILT if language in NEEDED else [])
    for language in LANGUAGES
]
# Those that need no building watch the same job at the same time: it is the server that takes its time.
TROUPES = [
    pytest.param([Program(language) for language in languages], id="-".join(languages), marks=marks)
    for languages, marks in ((LANGUAGES[:3], []), (LANGUAGES[3:4], BUILT), (LANGUAGES[4:], BUILT))
]
Prepare = Callable[[Program], Awaitable[Path]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def prepare(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """What returns the folder to run a program in, built there once, or skips the test."""
    folders: dict[Program, Path] = {}

    async def prepared(program: Program) -> Path:
        program.skip_if_not_installed()
        if program not in folders:
            folders[program] = await program.prepare(tmp_path_factory.mktemp(program.language))
        return folders[program]

    return prepared


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module that grpclib's own plugin for protoc makes of the protos; messages are the same."""
    folder = tmp_path_factory.mktemp("grpclib")
    plugin = Path(sys.executable).parent / "protoc-gen-grpclib_python"
    google = Path(grpc_tools.__file__).parent / "_proto"
    words = [f"-I{ROOT / 'protos'}", f"-I{google}", f"--plugin={plugin}", f"--grpclib_python_out={folder}"]
    assert protoc.main(["protoc", *words, "profile_export/v1/export_service.proto"]) == 0
    path = folder / "profile_export" / "v1" / "export_service_grpc.py"
    spec = importlib.util.spec_from_file_location("generated_by_grpclib", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stage:
    """A server whose jobs can be held in PROCESSING, and which another one can replace."""

    def __init__(self, folder: Path, engine: GatedEngine) -> None:
        self._settings, self._engine = settings_for(folder), engine
        self._gate = Gate()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.port}"

    async def start_server(self) -> None:
        self._server = Application(load(self._settings, {}), self._engine)
        await self._server.start()

    async def stop_server(self) -> None:
        await self._server.stop()

    async def replace_server(self) -> None:
        """Drain the server, and start another one on its port with its data, which comes as far with its job."""
        self._settings["grpc_address"] = self.address
        await self.stop_server()
        self._gate = self._engine.before_run = Gate()
        await self.start_server()

    async def hold_a_job(self) -> int:
        self._gate = self._engine.before_run = Gate()
        async with grpc.aio.insecure_channel(self.address) as channel:
            job_id = await new_job(channel, STAGED)
        await self._gate.reached.wait()
        return job_id

    def let_it_go(self) -> None:
        self._engine.before_run = go_on
        self._gate.passed.set()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def theatre(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    real = real_engine()
    await real.start()
    opened = Stage(tmp_path_factory.mktemp("stage"), GatedEngine(real))
    await opened.start_server()
    yield opened
    await opened.stop_server()
    await real.close()


@pytest.fixture
def stage(theatre: Stage) -> Iterator[Stage]:
    yield theatre
    theatre.let_it_go()


async def new_job(channel: grpc.aio.Channel, sandbox: str) -> int:
    caller = Caller(channel, "default")
    caller.metadata = (("x-gw-ims-org-id", "default"), ("x-sandbox-name", sandbox))
    source = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(source, f"rows-{secrets.token_hex(6)}", [{"id": "1"}])
    no_table = dataset_pb2.IcebergSettings(enabled=False)
    return (await caller.job(await caller.dataset("union", iceberg=no_table))).id


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_program_tells_every_move_of_a_job_and_ends(
    prepare: Prepare, program: Program, application: Application, channel: grpc.aio.Channel
) -> None:
    folder = await prepare(program)
    sandbox = f"watch-{secrets.token_hex(6)}"
    job_id = await new_job(channel, sandbox)

    async with program.running(folder, f"127.0.0.1:{application.port}", job_id, sandbox) as watching:
        ended = await watching.end()

    assert ended == (0, ONE_ATTEMPT, "")


@pytest.mark.slow
@pytest.mark.parametrize("programs", TROUPES)
async def test_another_server_and_a_broken_connection_lose_nothing_and_repeat_nothing(
    prepare: Prepare, programs: Sequence[Program], stage: Stage
) -> None:
    folders = [await prepare(program) for program in programs]
    job_id = await stage.hold_a_job()

    async with Line(stage.address) as line, AsyncExitStack() as stack:
        watching = [
            await stack.enter_async_context(program.running(folder, line.address, job_id, STAGED))
            for program, folder in zip(programs, folders, strict=True)
        ]
        for one in watching:
            await one.until(2)
        await stage.replace_server()
        for one in watching:
            await one.until(4)
        line.cut()
        stage.let_it_go()
        ended = [await one.end() for one in watching]

    assert [(code, moves) for code, moves, _ in ended] == [(0, TWO_ATTEMPTS)] * len(programs), ended


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_program_takes_any_other_code_for_an_error(
    prepare: Prepare, program: Program, application: Application
) -> None:
    folder = await prepare(program)

    async with program.running(folder, f"127.0.0.1:{application.port}", 1, "nobody") as watching:
        code, moves, errors = await watching.end()

    assert code
    assert moves == []
    assert "There is no job 1." in errors


async def test_grpclib_watches_a_job_from_its_first_move_to_its_end(
    application: Application, channel: grpc.aio.Channel, generated: ModuleType
) -> None:
    job_id = await new_job(channel, "prod")

    async with grpclib_channel(f"127.0.0.1:{application.port}") as opened:
        watch = GrpclibWatch(generated.ExportServiceStub(opened), job_id)
        await watch.until_end()

    assert watch.moves == ONE_ATTEMPT


async def test_grpclib_whose_connection_breaks_says_so_in_its_own_way_and_goes_on(
    stage: Stage, generated: ModuleType
) -> None:
    job_id = await stage.hold_a_job()

    async with Line(stage.address) as line, grpclib_channel(line.address) as channel:
        watch = GrpclibWatch(generated.ExportServiceStub(channel), job_id)
        await watch.until(2)
        line.cut()
        with pytest.raises(StreamTerminatedError):
            await watch.until_end()
        stage.let_it_go()
        await watch.until_end()

    assert watch.moves == ONE_ATTEMPT


def grpclib_channel(address: str) -> Channel:
    host, port = address.split(":")
    return Channel(host, int(port))


class GrpclibWatch:
    """A watch by the stub of another implementation."""

    def __init__(self, stub: Any, job_id: int) -> None:
        self._stub, self._job_id, self._revision = stub, job_id, 0
        self._messages = self._open()
        self.moves: list[tuple[int, str]] = []

    async def until(self, revision: int) -> None:
        while self._revision < revision:
            self._take(await anext(self._messages))

    async def until_end(self) -> None:
        """Read to the end of the stream; one that does not end OK is raised, and the next call goes on after it."""
        try:
            async for message in self._messages:
                self._take(message)
        finally:
            self._messages = self._open()

    async def _open(self) -> AsyncIterator[es.WatchJobResponse]:
        request = es.WatchJobRequest(job_id=self._job_id, after_revision=self._revision)
        async with self._stub.WatchJob.open() as stream:
            await stream.send_message(request, end=True)
            async for message in stream:
                yield message
            await stream.recv_trailing_metadata()

    def _take(self, message: es.WatchJobResponse) -> None:
        self._revision = message.revision
        self.moves += [
            (move.revision, job_pb2.JobState.Name(move.to_state).removeprefix("JOB_STATE_"))
            for move in message.transitions
        ]


def test_the_page_shows_the_programs_that_run() -> None:
    blocks, _ = page(PAGE)

    shown = {block.heading: block.text for block in blocks if block.language != "sh"}

    assert tuple(shown) == LANGUAGES
    for language, heart in shown.items():
        assert heart in Program(language).file.read_text()
    assert f"({PAGE})" in (ROOT / "README.md").read_text()


def test_the_page_names_what_is_there_and_what_has_to_be_installed() -> None:
    text = (ROOT / PAGE).read_text()

    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
    assert all(f"`{package}`" in text for packages in NEEDED.values() for package in packages)
