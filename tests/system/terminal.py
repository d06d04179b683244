"""The command line and the server as processes."""

import faulthandler
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from profile_export.cli import main

_PATIENCE = 60
COMMAND = (sys.executable, "-m", "profile_export")

# A process for each command, but libraries are loaded once for all of them: that takes longer than most commands.
_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(["profile_export.__main__", "profile_export.app", __name__])


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server that keeps its data in a folder, on a free port unless told; give the process and its address."""
    serve = ("serve", "--data-dir", str(folder / "data"), "--grpc-address", "127.0.0.1:0", *options)
    with started(serve, folder / "log") as (server, line):
        assert line.startswith("listening on "), (folder / "log").read_text()
        yield server, line.removeprefix("listening on ")


@contextmanager
def started(words: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a process that says on a line when it is ready; give both, and tell it to stop at the end."""
    with (
        log.open("ab") as errors,
        subprocess.Popen(
            [*COMMAND, *words], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()


def environment(**more: str) -> Mapping[str, str]:
    """Return the variables of this process without those that the product would read, and without contexts."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PROFILE_EXPORT_")}
    return own | {"XDG_CONFIG_HOME": os.devnull} | more


@dataclass(frozen=True)
class Terminal:
    """Somebody who types commands for one server, as one tenant."""

    address: str
    sandbox: str

    def type(
        self, *words: str | Path, to: str = "", given: bytes = b"", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Type a command, with further variables; `given` is what it reads from standard input."""
        talks = words[0] not in {"serve", "worker", "db", "contexts"} and words[:2] != ("jobs", "verify")
        typed = [*map(str, words), *(("--sandbox", self.sandbox) if talks else ())]
        variables = environment(**{"PROFILE_EXPORT_ADDRESS": to or self.address} | more)
        with tempfile.TemporaryDirectory() as folder:
            out, err, source = Path(folder, "out"), Path(folder, "err"), Path(folder, "in")
            source.write_bytes(given)
            command = _LOADED.Process(target=_run, args=(typed, variables, source, out, err))
            command.start()
            command.join(_PATIENCE)
            if command.exitcode is None:
                command.kill()
                raise TimeoutError(f"{typed}, after {out.read_text()!r} and\n{err.read_text()}")
            return subprocess.CompletedProcess(typed, command.exitcode, out.read_text(), err.read_text())

    def get(self, *words: str | Path, **more: str) -> str:
        done = self.type(*words, given=b"", **more)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()


def _run(words: Sequence[str], variables: Mapping[str, str], source: Path, out: Path, err: Path) -> None:
    """Be the command, with what it reads and writes in files, as after `<`, `>` and `2>` in a shell."""
    os.dup2(os.open(source, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), descriptor)
    faulthandler.dump_traceback_later(_PATIENCE - 5, file=2)  # where it hangs, if it does
    os.environ.clear()
    os.environ.update(variables)
    time.tzset()
    sys.argv = ["profile-export", *words]
    main()
