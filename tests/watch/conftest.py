from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what is here first: the first piece that a process of a run gets is long enough for all who share a scenario.

    Whatever it runs through, others run through as well.
    """
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.untraced)
    items.sort(key=lambda item: HERE not in item.path.parents)
