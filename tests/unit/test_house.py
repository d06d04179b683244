"""Rules of the house that no linter knows."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "profile_export"
MODULES = [path for path in SOURCE.rglob("*.py") if path.parent.name != "v1"]
MIGRATIONS = Path("store", "db", "migrations", "versions")
MOST_MODULES = 12
IMPLEMENTATIONS = {"LocalLake", "DuckDbEngine"}
FILE_CALLS = {"open", "exists", "stat", "unlink", "mkdir", "rmdir", "rename", "touch", "iterdir"}
FILE_CALLS |= {"glob", "rglob", "read_bytes", "write_bytes", "read_text", "write_text", "is_file", "is_dir"}
NAMES_THAT_SAY_NOTHING = {"utils", "common", "helpers", "services", "models", "base"}
# What reads a clock, makes an id or touches the world: the domain gets their results as arguments.
IMPURE = {"random", "secrets", "uuid", "time"} | {"asyncio", "subprocess", "threading"}
IMPURE |= {"io", "os", "pathlib", "socket", "sqlite3", "tempfile"}
CLOCKS = {"now", "today", "utcnow"}


def test_the_modules_are_found() -> None:
    assert SOURCE / "config.py" in MODULES


def test_a_room_of_more_than_a_dozen_modules_has_sub_rooms() -> None:
    sizes = Counter(str(path.parent.relative_to(SOURCE)) for path in MODULES if path.name != "__init__.py")
    del sizes[str(MIGRATIONS)]

    assert {room: size for room, size in sizes.items() if size > MOST_MODULES} == {}


def test_only_the_composition_root_names_a_lake_or_an_engine() -> None:
    names = {
        str(path.relative_to(SOURCE))
        for path in MODULES
        if IMPLEMENTATIONS & {node.id for node in ast.walk(_parsed(path)) if isinstance(node, ast.Name)}
    }

    assert {name for name in names if not name.startswith("app/")} == set()


def test_only_the_lake_touches_data_files() -> None:
    touching = {
        str(path.relative_to(SOURCE))
        for room in ("api", "application", "runner")
        for path in (SOURCE / room).rglob("*.py")
        for node in ast.walk(_parsed(path))
        if isinstance(node, ast.Attribute) and node.attr in FILE_CALLS and _is_a_path(node.value)
    }

    # The bytes of an upload that is under way are a file of this machine, which is written as they come.
    assert touching == {"application/uploads.py"}


def test_a_server_loads_no_library_that_only_its_children_need() -> None:
    loaded = (
        "import profile_export.app.server, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )

    modules = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    ).stdout

    assert "grpc" in modules.split()
    assert set(modules.split()) & {"duckdb", "ibis", "pyiceberg", "scipy"} == set()


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


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _is_a_path(value: ast.expr) -> bool:
    """Whether what a method is called on may be a path: it is neither a lake nor the sessions of uploads."""
    return not ast.unparse(value).endswith(("lake", "sessions"))
