from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command(tmp_path / "data", "--grpc-address", "127.0.0.1:0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def address(server: subprocess.Popen[str]) -> str:
    assert server.stdout
    return server.stdout.readline().removeprefix("listening on ").strip()


def create_dataset(channel: grpc.Channel, name: str) -> str:
    call = channel.unary_unary(
        "/profile_export.v1.DatasetService/CreateDataset",
        request_serializer=ds.CreateDatasetRequest.SerializeToString,
        response_deserializer=ds.CreateDatasetResponse.FromString,
    )
    request = ds.CreateDatasetRequest(name=name, schema_ref=dataset_pb2.SchemaRef(id=RECORD))
    response: ds.CreateDatasetResponse = call(request, timeout=SECONDS)
    return response.dataset.id


def test_a_server_drains_on_sigterm_and_finds_its_data_again(
    server: subprocess.Popen[str], tmp_path: Path
) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(
            health_pb2.HealthCheckRequest(service="profile_export.v1.ExportService"), timeout=SECONDS
        )
        made = create_dataset(channel, "kept")
    server.send_signal(signal.SIGTERM)
    _, log = server.communicate(timeout=SECONDS)

    with subprocess.Popen(
        command(tmp_path / "data", "--grpc-address", "127.0.0.1:0"), stdout=subprocess.PIPE, text=True
    ) as again:
        with grpc.insecure_channel(address(again)) as channel:
            listed = channel.unary_unary(
                "/profile_export.v1.DatasetService/ListDatasets",
                request_serializer=ds.ListDatasetsRequest.SerializeToString,
                response_deserializer=ds.ListDatasetsResponse.FromString,
            )(ds.ListDatasetsRequest(), timeout=SECONDS)
        again.terminate()

    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert server.returncode == again.returncode == 0
    assert [dataset.id for dataset in listed.datasets] == [made]
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line["event"] == "call" and line["method"].endswith("CreateDataset") for line in lines)


def test_a_second_server_on_the_same_data_is_refused_in_one_line(
    server: subprocess.Popen[str], tmp_path: Path
) -> None:
    address(server)

    second = subprocess.run(
        command(tmp_path / "data", "--grpc-address", "127.0.0.1:0"),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert second.returncode == 2
    assert second.stdout == ""
    [line] = second.stderr.strip().splitlines()
    assert "is in use by another process" in line


def test_a_port_that_is_taken_is_refused_in_one_line(server: subprocess.Popen[str], tmp_path: Path) -> None:
    taken = address(server)

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
