"""Rules of the house that no linter knows."""

import ast
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "profile_export"
MODULES = [path for path in SOURCE.rglob("*.py") if path.parent.name != "v1"]
MOST_LINES = 350
NAMES_THAT_SAY_NOTHING = {"utils", "common", "helpers", "services", "models", "base"}
# What reads a clock, makes an id or touches the world: the domain gets their results as arguments.
IMPURE = {"random", "secrets", "uuid", "time"} | {"asyncio", "subprocess", "threading"}
IMPURE |= {"io", "os", "pathlib", "socket", "sqlite3", "tempfile"}
CLOCKS = {"now", "today", "utcnow"}


def test_the_modules_are_found() -> None:
    assert SOURCE / "config.py" in MODULES


def test_no_module_outgrows_its_noun() -> None:
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in MODULES}

    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_every_module_is_named_for_what_it_holds() -> None:
    names = {part for path in MODULES for part in path.relative_to(SOURCE).with_suffix("").parts}

    assert names & NAMES_THAT_SAY_NOTHING == set()


def test_the_domain_imports_only_pure_parts_of_the_standard_library() -> None:
    allowed = (sys.stdlib_module_names - IMPURE) | {"profile_export"}

    strangers = {
        f"{path.name}: {name}"
        for path in (SOURCE / "domain").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imported(node)
        if name.split(".")[0] not in allowed
    }

    assert strangers == set()


def test_the_domain_reads_no_clock() -> None:
    readings = {
        f"{path.name}:{node.lineno}"
        for path in (SOURCE / "domain").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS
    }

    assert readings == set()


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []
