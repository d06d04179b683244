from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARE_A_SCENARIO = HERE / "test_promises.py"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first those that share a scenario: the first piece of a run, which one process gets, holds all of them.

    Leave all here out of what is traced: what they run through, others run through as well.
    """
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.untraced)
    items.sort(key=lambda item: item.path != SHARE_A_SCENARIO)
