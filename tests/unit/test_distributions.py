"""The slim distribution beside the whole one: what is in it, and that both say the same."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "profile_export"


def settings(path: str) -> Any:
    return tomllib.loads((ROOT / path).read_text())


WHOLE, SLIM = settings("pyproject.toml"), settings("client/pyproject.toml")
SLIM_FILES: dict[str, str] = SLIM["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]


def slim_modules() -> list[Path]:
    places = [(ROOT / "client" / path).resolve() for path in SLIM_FILES]
    return [path for place in places for path in ([place] if place.is_file() else place.rglob("*.py"))]


def imported_at_once(path: Path) -> set[str]:
    """What a module imports when it is imported itself, without what it imports in a function."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found


def test_both_distributions_say_the_same_of_what_they_share() -> None:
    whole, slim = WHOLE["project"], SLIM["project"]
    shared = ("version", "license", "requires-python", "scripts")

    assert [whole[name] for name in shared] == [slim[name] for name in shared]
    assert set(slim["dependencies"]) <= set(whole["dependencies"])
    assert WHOLE["build-system"] == SLIM["build-system"]


def test_the_slim_one_has_whole_rooms_of_the_package_under_their_own_names() -> None:
    for path, place in SLIM_FILES.items():
        found = (ROOT / "client" / path).resolve()
        assert found.exists()
        assert str(found).endswith(place)


def test_the_slim_one_imports_nothing_at_once_that_is_not_in_it() -> None:
    modules = [path for path in slim_modules() if path.suffix == ".py"]
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules}
    brought = {"grpc", "google", "typer", "rich", *sys.stdlib_module_names}

    for path in modules:
        for name in imported_at_once(path):
            top, *rest = name.split(".")
            known = not rest or rest[0] in rooms if top == "profile_export" else top in brought
            assert known, (path, name)


def test_the_contract_lies_beside_its_stubs_in_both() -> None:
    whole: dict[str, str] = WHOLE["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]

    assert whole["protos/profile_export/v1"] == "profile_export/v1"
    assert SLIM_FILES["../protos/profile_export/v1"] == "profile_export/v1"
    protos = {path.stem for path in (ROOT / "protos/profile_export/v1").glob("*.proto")}
    assert {path.name.removesuffix("_pb2.py") for path in (PACKAGE / "v1").glob("*_pb2.py")} == protos
