"""The README, taken at its word: its commands run as they stand, and what it says is not built is what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from profile_export.v1 import (
    dataset_service_pb2,
    export_service_pb2,
    profile_service_pb2,
    schema_service_pb2,
)
from tests.service.test_node import node_command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SERVICES = [
    contract.DESCRIPTOR.services_by_name[name]
    for contract, name in (
        (dataset_service_pb2, "DatasetService"),
        (export_service_pb2, "ExportService"),
        (profile_service_pb2, "ProfileService"),
        (schema_service_pb2, "SchemaService"),
    )
]
DEFAULT_ADDRESS = "127.0.0.1:50051"


def section(heading: str) -> str:
    """What stands between a heading and the next one."""
    found = re.search(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", prose(README), re.DOTALL | re.MULTILINE)
    assert found, f"the README has no heading {heading!r}"
    return found[1]
