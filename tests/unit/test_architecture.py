"""The pages that show the house are compared with it: they name every room, and no path that is not there."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "profile_export"
MAP = "docs/architecture.md"
PAGES = (MAP, "CONTRIBUTING.md")
# `<format>` stands for a name that whoever adds the file chooses.
PLACEHOLDER = re.compile(r"[^/]*<\w+>.*")
PATH = re.compile(r"(?:[\w.<>-]+/)+(?:[\w.<>-]+)?|[\w<>-]+\.(?:py|md|proto|toml|yaml|binpb)|Makefile")
BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def words(page: str) -> set[str]:
    """Return what a page writes as code, in a line or, word by word, in a block."""
    text = (ROOT / page).read_text()
    spans = re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    return {*spans, *(word for block in BLOCK.findall(text) for word in block.split())}


def rooms() -> set[str]:
    """Return every package below the source, as a path, except the generated one; migrations are no package."""
    packages = {path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("__init__.py")}
    return packages - {".", "v1"}


def missing(page: str) -> Iterator[str]:
    """Yield the paths that a page names and that are not there."""
    for path in words(page):
        known = PLACEHOLDER.sub("", path)
        if PATH.fullmatch(path) and not any((base / known).exists() for base in (ROOT, SOURCE)):
            yield path
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        if not (ROOT / page).parent.joinpath(link).exists():
            yield link


def test_every_room_and_sub_room_is_on_the_map() -> None:
    named = {word.rstrip("/") for word in words(MAP)}

    assert len(rooms()) > 10
    assert rooms() - named == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page: str) -> None:
    paths = {word for word in words(page) if PATH.fullmatch(word)}

    assert len(paths) > 5
    assert set(missing(page)) == set()


def test_the_picture_has_the_layers_that_the_linter_checks() -> None:
    # given the layers, outermost first; one in brackets need not exist
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [checked] = [one["layers"] for one in contracts if one["type"] == "layers"]
    layers = [re.findall(r"\w+", re.sub(r"\(\w+\)", "", layer)) for layer in checked]

    # when the picture is read: each line begins with the rooms of one layer
    picture = BLOCK.findall((ROOT / MAP).read_text())[0].splitlines()
    drawn = [
        line.replace("│", " ").split()[: len(layer)] for line, layer in zip(picture, layers, strict=True)
    ]

    # then they are the same, in the same order
    assert drawn == layers


def test_make_targets_that_the_page_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [word for page in PAGES for word in words(page) if word.startswith("make ")]

    assert len(commands) > 5
    assert {name for command in commands for name in command.split()[1:]} - targets == set()
