from __future__ import annotations

from pathlib import Path

import pytest

SHARE_A_SCENARIO = Path(__file__).parent / "test_promises.py"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first those that share a scenario: the first piece of a run, which one process gets, holds all of them."""
    items.sort(key=lambda item: item.path != SHARE_A_SCENARIO)
