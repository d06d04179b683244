from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from profile_export.v1 import dataset_pb2
from profile_export.v1 import dataset_service_pb2 as ds

SECONDS = 30
RECORD = "https://ns.adobe.com/xdm/context/profile"


def command(data_dir: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "profile_export", "serve", "--data-dir", str(data_dir), *options]


@contextmanager
def serving(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server; give the process and its address."""
    with subprocess.Popen(
        command(data_dir, "--grpc-address", "127.0.0.1:0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        yield process, process.stdout.readline().removeprefix("listening on ").strip()
        process.kill()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A data directory with a server, and where that listens."""
    data_dir = tmp_path_factory.mktemp("first")
    with serving(data_dir) as (_, address):
        yield data_dir, address


def create_dataset(channel: grpc.Channel, name: str) -> str:
    call = channel.unary_unary(
        "/profile_export.v1.DatasetService/CreateDataset",
        request_serializer=ds.CreateDatasetRequest.SerializeToString,
        response_deserializer=ds.CreateDatasetResponse.FromString,
    )
    request = ds.CreateDatasetRequest(name=name, schema_ref=dataset_pb2.SchemaRef(id=RECORD))
    response: ds.CreateDatasetResponse = call(request, timeout=SECONDS)
    return response.dataset.id


def test_a_server_drains_on_sigterm_and_finds_its_data_again(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, address):
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(
                health_pb2.HealthCheckRequest(service="profile_export.v1.ExportService"), timeout=SECONDS
            )
            made = create_dataset(channel, "kept")
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=SECONDS)

    with serving(tmp_path) as (again, address):
        with grpc.insecure_channel(address) as channel:
            listed = channel.unary_unary(
                "/profile_export.v1.DatasetService/ListDatasets",
                request_serializer=ds.ListDatasetsRequest.SerializeToString,
                response_deserializer=ds.ListDatasetsResponse.FromString,
            )(ds.ListDatasetsRequest(), timeout=SECONDS)
        again.terminate()
        again.communicate(timeout=SECONDS)

    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert server.returncode == again.returncode == 0
    assert [dataset.id for dataset in listed.datasets] == [made]
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line["event"] == "call" and line["method"].endswith("CreateDataset") for line in lines)
    assert lines[0]["event"] == "started"
    assert lines[0]["settings"]["data_dir"] == str(tmp_path)
    assert [(line["event"], line["why"]) for line in lines[-2:]] == [
        ("stopping", "SIGTERM"),
        ("stopped", "SIGTERM"),
    ]


@pytest.mark.slow
def test_a_second_server_on_the_same_data_is_refused_in_one_line(
    first: tuple[Path, str],
) -> None:
    data_dir, _ = first

    second = subprocess.run(
        command(data_dir, "--grpc-address", "127.0.0.1:0"),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert second.returncode == 2
    assert second.stdout == ""
    [line] = second.stderr.strip().splitlines()
    assert "is in use by another process" in line


def test_a_port_that_is_taken_is_refused_in_one_line(first: tuple[Path, str], tmp_path: Path) -> None:
    _, taken = first

    second = subprocess.run(
        command(tmp_path / "other", "--grpc-address", taken),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert second.returncode == 2
    [line] = second.stderr.strip().splitlines()
    assert taken in line
