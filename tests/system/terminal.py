"""The command line and the server as processes."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMMAND = (sys.executable, "-m", "profile_export")


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server that keeps its data in a folder, on a free port unless told; give the process and its address."""
    serve = ("serve", "--data-dir", str(folder / "data"), "--grpc-address", "127.0.0.1:0", *options)
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            [*COMMAND, *serve], stdout=subprocess.PIPE, stderr=log, text=True, env=environment()
        ) as server,
    ):
        try:
            assert server.stdout is not None
            first_line = server.stdout.readline()
            assert first_line.startswith("listening on "), (folder / "log").read_text()
            yield server, first_line.removeprefix("listening on ").strip()
        finally:
            server.terminate()


def environment(**more: str) -> Mapping[str, str]:
    """Return the variables of this process without those that the product would read."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PROFILE_EXPORT_")}
    return own | more


@dataclass(frozen=True)
class Terminal:
    """Somebody who types commands for one server, as one tenant."""

    address: str
    sandbox: str

    def type(self, *words: str | Path, to: str = "") -> subprocess.CompletedProcess[str]:
        talks = words[0] != "serve" and words[:2] != ("jobs", "verify")
        server = ("--sandbox", self.sandbox) if talks else ()
        return subprocess.run(
            [*COMMAND, *map(str, words), *server],
            env=environment(PROFILE_EXPORT_ADDRESS=to or self.address),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def get(self, *words: str | Path) -> str:
        done = self.type(*words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()
