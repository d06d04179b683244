"""docs/semantics.md, taken at its word: every example of every sentence comes out as the page says."""

from __future__ import annotations

import re

import pytest

from tests.service.examples import PAGE, Example, Play, examples
from tests.service.harness import Caller
from tests.service.pages import ROOT

SENTENCES = set(range(1, 28))


@pytest.mark.parametrize("example", examples(), ids=str)
@pytest.mark.slow
async def test_the_example_comes_out_as_the_page_says(caller: Caller, example: Example) -> None:
    await Play(caller).carry_out(example)


def test_every_sentence_has_an_example_and_a_test_that_names_it() -> None:
    named = {
        int(number)
        for path in (ROOT / "tests").rglob("test_*.py")
        for number in re.findall(r"def test_s(\d+)_", path.read_text())
    }

    assert {example.sentence for example in examples()} == SENTENCES
    assert named >= SENTENCES
    assert f"({PAGE})" in (ROOT / "README.md").read_text()
