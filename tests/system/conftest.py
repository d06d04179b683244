import json
import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.system.terminal import Terminal, served


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with served(folder) as (server, address):
        yield address
    assert server.returncode == 0, (folder / "log").read_text()


@pytest.fixture
def terminal(address: str, request: pytest.FixtureRequest) -> Terminal:
    """A terminal with a tenant of its own, so that tests share the server and nothing else."""
    return Terminal(address, sha256(request.node.nodeid.encode()).hexdigest()[:16])


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 records of some megabytes that do not compress well."""
    path = tmp_path_factory.mktemp("noise") / "crm.jsonl"
    dice = random.Random(1)
    with path.open("w") as lines:
        lines.writelines(
            json.dumps({"crmId": f"C-{number}", "note": dice.randbytes(128).hex()}) + "\n"
            for number in range(20_000)
        )
    return path
