from __future__ import annotations

import os
import secrets

import pytest


@pytest.fixture
def seed() -> str:
    """What all dice of a test are made of: the variable SEED, or a new one."""
    chosen = os.environ.get("SEED") or secrets.token_hex(4)
    print(f"SEED={chosen}")  # noqa: T201 - shown with a failure, to repeat it
    return chosen
