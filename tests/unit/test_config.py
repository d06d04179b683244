import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from profile_export.cli import serve
from profile_export.config import (
    Options,
    Secret,
    ServeSettings,
    SettingsError,
    WorkSettings,
    load,
    load_store,
    load_worker,
)
from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas

FOLDER = {"data_dir": ".data"}

BAD = [
    ("data_dir", ""),
    ("data_dir", "a\0b"),
    ("database_url", "sqlite:///x"),
    ("database_url", "postgresql:there/x"),
    ("database_url", "postgresql://me@there:port/x"),
    ("database_url", "postgresql://me@there:65536/x"),
    ("database_url", "postgresql://[me@there/x"),
    ("adopt_lake", "perhaps"),
    ("trash_days", "0"),
    ("trash_days", "a month"),
    ("grpc_address", ""),
    ("grpc_address", "50051"),
    ("grpc_address", ":50051"),
    ("grpc_address", "127.0.0.1"),
    ("grpc_address", "127.0.0.1:"),
    ("grpc_address", "127.0.0.1:http"),
    ("grpc_address", "127.0.0.1:-1"),
    ("grpc_address", "127.0.0.1:65536"),
    ("grpc_address", "::1:50051"),
    ("grpc_address", "[::1]"),
    ("grpc_address", "[127.0.0.1]:1"),
    ("grpc_address", "[]:1"),
    ("grpc_address", "a b:1"),
    ("grpc_address", "127.0.0.1:1\n"),
    ("insecure", "maybe"),
    ("workers", "-1"),
    ("workers", "all"),
    ("memory_limit_mb", "511"),
    ("memory_limit_mb", "1GB"),
    ("threads", "0"),
    ("threads", "-1"),
    ("threads", "2.5"),
    ("threads", "1_0"),
    ("threads", "٣"),
    ("log_level", "loud"),
    ("log_format", "xml"),
    ("drain_seconds", "soon"),
    ("drain_seconds", "-1"),
    ("max_record_bytes", "0"),
    ("max_event_bytes", "many"),
    ("download_grace_seconds", "1h"),
    ("mirror_keep_minutes", "0"),
    ("upload_idle_minutes", "0"),
    ("upload_expiry_hours", "0"),
    ("quota_waiting_jobs", "-1"),
    ("quota_running_jobs", "all"),
    ("quota_datasets", "1e3"),
    ("quota_loading_batches", "-1"),
    ("quota_staged_mb", "10 GB"),
    ("quota_watches", "1.5"),
    ("quota_transfers", "-0"),
]


def _refusal(options: Mapping[str, str | bool | None], environ: Mapping[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        load(options, environ)
    return str(caught.value)


def _assert_one_line_with_both_names(line: str, name: str) -> None:
    assert "\n" not in line
    assert f"--{name.replace('_', '-')} " in line
    assert f"PROFILE_EXPORT_{name.upper()}" in line


class Noted(dict[str, str]):
    """Options that remember which of them were asked for."""

    asked: set[str]

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


@pytest.mark.parametrize(
    ("read", "command"),
    [(load, serve.serve), (load_worker, serve.worker), (load_store, serve.status), (load_store, serve.check)],
)
def test_every_setting_is_an_option_of_its_command_and_a_variable(
    read: Callable[[Options, Mapping[str, str]], object], command: Callable[..., None]
) -> None:
    options = Noted({**FOLDER, "database_url": "postgresql://me@there/x"})
    options.asked = set()

    read(options, {})

    assert options.asked == inspect.signature(command).parameters.keys() - {"as_json"}
    assert options.asked <= set(serve.SETTINGS)


def test_a_folder_is_all_that_has_to_be_given() -> None:
    settings = load(FOLDER, {})

    assert settings == ServeSettings(
        data_dir=Path(".data"),
        database_url=None,
        grpc_address=("127.0.0.1", 50_051),
        insecure=False,
        workers=1,
        memory_limit_mb=None,
        threads=None,
        log_level="info",
        log_format="auto",
        drain_seconds=10,
        connection_age_seconds=3_600,
        max_record_bytes=100_000,
        max_event_bytes=10_000,
        download_grace_seconds=3_600,
        mirror_keep_minutes=60,
        job_retention_days=None,
        watch_history_minutes=1_440,
        ingest_processes=None,
        ingest_cpu_seconds=30,
        ingest_cpu_seconds_per_mib=2,
        upload_idle_minutes=10,
        upload_expiry_hours=24,
        quotas=Quotas(1_000, 100, 10_000, 1_000, 100_000_000_000, 25_000, 256),
        adopt_lake=False,
        trash_days=30,
    )


def test_every_option_has_its_variable() -> None:
    settings = load(
        {},
        {
            "PROFILE_EXPORT_DATA_DIR": "/srv/data",
            "PROFILE_EXPORT_DATABASE_URL": "postgresql://me@there/x",
            "PROFILE_EXPORT_GRPC_ADDRESS": "0.0.0.0:9000",
            "PROFILE_EXPORT_INSECURE": "Yes",
            "PROFILE_EXPORT_WORKERS": "0",
            "PROFILE_EXPORT_MEMORY_LIMIT_MB": "2048",
            "PROFILE_EXPORT_THREADS": "4",
            "PROFILE_EXPORT_LOG_LEVEL": "DEBUG",
            "PROFILE_EXPORT_LOG_FORMAT": "JSON",
            "PROFILE_EXPORT_DRAIN_SECONDS": "0",
            "PROFILE_EXPORT_CONNECTION_AGE_SECONDS": "900",
            "PROFILE_EXPORT_MAX_RECORD_BYTES": "5000",
            "PROFILE_EXPORT_MAX_EVENT_BYTES": "500",
            "PROFILE_EXPORT_DOWNLOAD_GRACE_SECONDS": "60",
            "PROFILE_EXPORT_MIRROR_KEEP_MINUTES": "5",
            "PROFILE_EXPORT_JOB_RETENTION_DAYS": "90",
            "PROFILE_EXPORT_WATCH_HISTORY_MINUTES": "30",
            "PROFILE_EXPORT_INGEST_PROCESSES": "3",
            "PROFILE_EXPORT_INGEST_CPU_SECONDS": "20",
            "PROFILE_EXPORT_INGEST_CPU_SECONDS_PER_MIB": "0",
            "PROFILE_EXPORT_UPLOAD_IDLE_MINUTES": "1",
            "PROFILE_EXPORT_UPLOAD_EXPIRY_HOURS": "48",
            "PROFILE_EXPORT_QUOTA_WAITING_JOBS": "1",
            "PROFILE_EXPORT_QUOTA_RUNNING_JOBS": "2",
            "PROFILE_EXPORT_QUOTA_DATASETS": "3",
            "PROFILE_EXPORT_QUOTA_LOADING_BATCHES": "6",
            "PROFILE_EXPORT_QUOTA_STAGED_MB": "4",
            "PROFILE_EXPORT_QUOTA_WATCHES": "5",
            "PROFILE_EXPORT_QUOTA_TRANSFERS": "0",
            "PROFILE_EXPORT_ADOPT_LAKE": "true",
            "PROFILE_EXPORT_TRASH_DAYS": "7",
        },
    )

    assert settings == ServeSettings(
        data_dir=Path("/srv/data"),
        database_url=Secret("postgresql://me@there/x"),
        grpc_address=("0.0.0.0", 9_000),
        insecure=True,
        workers=0,
        memory_limit_mb=2_048,
        threads=4,
        log_level="debug",
        log_format="json",
        drain_seconds=0,
        connection_age_seconds=900,
        max_record_bytes=5_000,
        max_event_bytes=500,
        download_grace_seconds=60,
        mirror_keep_minutes=5,
        job_retention_days=90,
        watch_history_minutes=30,
        ingest_processes=3,
        ingest_cpu_seconds=20,
        ingest_cpu_seconds_per_mib=0,
        upload_idle_minutes=1,
        upload_expiry_hours=48,
        quotas=Quotas(1, 2, 3, 6, 4_000_000, 5, None),
        adopt_lake=True,
        trash_days=7,
    )


def test_an_option_beats_its_variable() -> None:
    environ = {"PROFILE_EXPORT_THREADS": "2", "PROFILE_EXPORT_INSECURE": "true"}

    settings = load({**FOLDER, "threads": "3", "insecure": False}, environ)

    assert settings.threads == 3
    assert settings.insecure is False


def test_an_option_that_is_not_given_leaves_the_word_to_its_variable() -> None:
    assert load({**FOLDER, "threads": None}, {"PROFILE_EXPORT_THREADS": "2"}).threads == 2


def test_a_variable_that_is_empty_is_not_given() -> None:
    assert load(FOLDER, {"PROFILE_EXPORT_THREADS": ""}).threads is None


def test_a_server_without_a_folder_is_refused() -> None:
    line = _refusal({}, {})

    _assert_one_line_with_both_names(line, "data_dir")
    assert "--data-dir .data" in line


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_option_is_one_line_with_both_names_and_the_way_out(name: str, value: str) -> None:
    line = _refusal({**FOLDER, name: value}, {})

    _assert_one_line_with_both_names(line, name)
    assert (repr(value) in line) is (name != "database_url")  # it may hold a password
    assert "give " in line


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, value in BAD if value])
def test_a_bad_variable_is_one_line_with_both_names_and_the_way_out(name: str, value: str) -> None:
    line = _refusal({}, {"PROFILE_EXPORT_DATA_DIR": ".data", f"PROFILE_EXPORT_{name.upper()}": value})

    _assert_one_line_with_both_names(line, name)
    assert (repr(value) in line) is (name != "database_url")  # it may hold a password
    assert "give " in line


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("127.1.2.3:65535", ("127.1.2.3", 65_535)),
        ("localhost:50051", ("localhost", 50_051)),
        ("[::1]:0", ("::1", 0)),
        ("[0:0:0:0:0:0:0:1]:1", ("::1", 1)),
    ],
)
def test_a_loopback_address_needs_nothing_else(text: str, address: tuple[str, int]) -> None:
    assert load({**FOLDER, "grpc_address": text}, {}).grpc_address == address


@pytest.mark.parametrize(
    "text", ["0.0.0.0:50051", "192.168.1.5:1", "[::]:0", "[2001:db8::1]:1", "example.org:1"]
)
def test_any_other_address_is_refused_unless_the_operator_accepts_it(text: str) -> None:
    line = _refusal({**FOLDER, "grpc_address": text}, {})

    _assert_one_line_with_both_names(line, "grpc_address")
    assert "--insecure (PROFILE_EXPORT_INSECURE=true)" in line
    assert load({**FOLDER, "grpc_address": text, "insecure": True}, {}).insecure


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:pass/word@there/x",
        "postgresql://me:pass/word@there/x",
        "postgresql://me:pass#word@there/x",
        "postgresql://me:pass?word@there/x",
        "postgresql://me:password@there:65536/x",
        "postgresql://[me:password@there/x",
    ],
)
def test_a_url_that_cannot_be_used_is_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({**FOLDER, "database_url": url}, {})

    _assert_one_line_with_both_names(str(caught.value), "database_url")
    told = "".join(traceback.format_exception(caught.value))
    assert "pass" not in told
    assert "word" not in told


def test_a_url_is_not_printed() -> None:
    settings = load({**FOLDER, "database_url": "postgresql://me:password@there/x"}, {})

    for printed in (repr(settings), str(settings.database_url), f"{settings}", str(settings.told())):
        assert "password" not in printed
    assert settings.url == "postgresql://me:password@there/x"


def test_a_worker_needs_the_folder_and_the_database_of_its_servers() -> None:
    url = "postgresql://me@there/x"

    assert load_worker(
        {**FOLDER, "database_url": url, "workers": "3", "quota_running_jobs": "7"}, {}
    ) == WorkSettings(
        data_dir=Path(".data"),
        database_url=Secret(url),
        workers=3,
        memory_limit_mb=None,
        threads=None,
        log_level="info",
        log_format="auto",
        quotas=replace(DEFAULT_QUOTAS, running_jobs=7),
        adopt_lake=False,
    )
    with pytest.raises(SettingsError, match=r"--database-url .* is required: give postgresql://"):
        load_worker(FOLDER, {})
    with pytest.raises(SettingsError, match="1 or more"):
        load_worker({**FOLDER, "database_url": url, "workers": "0"}, {})
