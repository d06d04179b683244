"""What an operator can set, from options and `PROFILE_EXPORT_*` variables."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas

Options = Mapping[str, str | bool | None]
_T = TypeVar("_T")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]\s]+)):(?P<port>[0-9]{1,5})")
_HIGHEST_PORT = 65_535
_YES = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_SECONDS_OR_MORE = "give whole seconds, 1 or more"
_BYTES = "give whole bytes, 1 or more"
_SECONDS = "give whole seconds, 0 or more"
_MINUTES = "give whole minutes, 1 or more"
_SHARE = "give a whole number, or 0 for no limit"
_MB = 1_000_000
_URL = "give postgresql://USER@HOST:PORT/DATABASE, with %XX for what is special in it"
_LEAST_MEMORY_MB = 512
"""Less, and exports of profiles with links fail: their merge needs that much for its operators alone."""
_CHILD_MEMORY_MB = 2_000
_MOST_DAYS = 36_500
_DAYS = f"give whole days, 1 to {_MOST_DAYS}"
_SECRETS = ("database_url",)
_LOG_LEVELS = ("debug", "info", "warning", "error")


class Secret:
    """A text that may hold a password: what prints, logs or traces it gets stars instead."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, for who uses it."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reveal() == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "***"


class SettingsError(Exception):
    """A setting that cannot be used. Its text is one line that names option, variable and the way out."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where everything is.

    `database_url` names a PostgreSQL database for the store, None: it is a file in `data_dir`, as all else is.
    """

    data_dir: Path
    database_url: Secret | None
    log_level: str

    @property
    def url(self) -> str | None:
        """The URL of the database, for who connects to it."""
        return None if self.database_url is None else self.database_url.reveal()


@dataclass(frozen=True, slots=True)
class WorkSettings(StoreSettings):
    """How jobs are run, by a server or by a worker process.

    `workers` is how many jobs run at once, and one more of a tenant that runs none. `memory_limit_mb` is what a
    process of the engine may hold at most (peak RSS, in 10^6 bytes, within a tenth); a job has one such process, an
    estimate another. None bounds DuckDB alone, by its own default. `threads` bounds the engine's threads, None: one
    per core; a small memory limit allows fewer. `quotas` are the shares of each tenant, of which a worker process
    knows the running jobs alone. `adopt_lake` gives the database all files in `data_dir`.
    """

    workers: int
    memory_limit_mb: int | None
    threads: int | None
    quotas: Quotas
    adopt_lake: bool


@dataclass(frozen=True, slots=True)
class ServeSettings(WorkSettings):
    """How one server runs. With 0 `workers` it only serves.

    `drain_seconds` is how long calls may take to finish after the server was told to stop, `connection_age_seconds` how
    old a connection gets before its client has to make another, and how long its last calls may take then.

    `download_grace_seconds` is how long files that nothing needs any more stay for those who may still be reading them,
    `mirror_keep_minutes` how long a snapshot of an Iceberg table after it was the newest, `job_retention_days` how long
    jobs after they ended, None: for ever, `watch_history_minutes` how far back a watch of all jobs can go on,
    `trash_days` how long the trash keeps what nobody knows.

    `upload_idle_minutes` is how long an upload may send nothing before it is ended, `upload_expiry_hours` how long
    after the last sign of life a batch that is not complete is given up.

    A record or event with more than `max_record_bytes` or `max_event_bytes` is rejected.

    `ingest_processes` is how many processes read uploads and schemas, None: one per core; a file may take them
    `ingest_cpu_seconds` and for each MiB of it `ingest_cpu_seconds_per_mib` more.
    """

    grpc_address: tuple[str, int]
    insecure: bool
    drain_seconds: int
    connection_age_seconds: int
    max_record_bytes: int
    max_event_bytes: int
    ingest_processes: int | None
    ingest_cpu_seconds: int
    ingest_cpu_seconds_per_mib: int
    download_grace_seconds: int
    mirror_keep_minutes: int
    job_retention_days: int | None
    watch_history_minutes: int
    upload_idle_minutes: int
    upload_expiry_hours: int
    trash_days: int

    @property
    def child_memory_mb(self) -> int:
        """What a process that runs no job may hold, in 10^6 bytes."""
        return self.memory_limit_mb or _CHILD_MEMORY_MB

    @property
    def watch_history(self) -> timedelta:
        """How far back a watch of all jobs can go."""
        return timedelta(minutes=self.watch_history_minutes)

    @property
    def job_retention(self) -> timedelta | None:
        """How long a job is kept after it ended; None: for ever."""
        return None if self.job_retention_days is None else timedelta(days=self.job_retention_days)


def load_store(options: Options, environ: Mapping[str, str]) -> StoreSettings:
    """Read where everything is, as `load` does for a server.

    Raises:
        SettingsError: A value is missing or cannot be used.
    """
    return _store_settings(_Source(options, environ))


def load_worker(options: Options, environ: Mapping[str, str]) -> WorkSettings:
    """Read the settings of a worker process, as `load` does those of a server.

    Raises:
        SettingsError: A value is missing or cannot be used.
    """
    source = _Source(options, environ)
    source.required(
        "database_url", _postgresql_url, f"{_URL}: only servers over one PostgreSQL database share jobs"
    )
    return _work_settings(source, least_workers=1)


def load(options: Options, environ: Mapping[str, str]) -> ServeSettings:
    """Read the settings of a server. Pure: it looks at nothing but its arguments.

    Args:
        options: What stood on the command line, by field of `ServeSettings`; None or missing: not given.
        environ: The environment. An option beats its variable, and a variable that is empty is not given.

    Raises:
        SettingsError: A value is missing or cannot be used.
    """
    source = _Source(options, environ)
    settings = ServeSettings(
        **asdict(_work_settings(source, least_workers=0)) | {"quotas": _quotas(source)},
        grpc_address=source.read(
            "grpc_address",
            _address,
            ("127.0.0.1", 50_051),
            "give HOST:PORT, such as 127.0.0.1:50051 or [::1]:0 (port 0: any free one)",
        ),
        insecure=source.read("insecure", _flag, default=False, advice="give true or false"),
        drain_seconds=source.read("drain_seconds", _whole(0), 10, _SECONDS),
        connection_age_seconds=source.read(
            "connection_age_seconds", _whole(1), 3600, "give whole seconds, 1 or more"
        ),
        download_grace_seconds=source.read("download_grace_seconds", _whole(0), 3600, _SECONDS),
        mirror_keep_minutes=source.read("mirror_keep_minutes", _whole(1), 60, _MINUTES),
        job_retention_days=source.read(
            "job_retention_days", _whole(1, _MOST_DAYS), None, f"{_DAYS}, or leave it out"
        ),
        watch_history_minutes=source.read("watch_history_minutes", _whole(1), 1440, _MINUTES),
        upload_idle_minutes=source.read("upload_idle_minutes", _whole(1), 10, _MINUTES),
        upload_expiry_hours=source.read("upload_expiry_hours", _whole(1), 24, "give whole hours, 1 or more"),
        trash_days=source.read("trash_days", _whole(1, _MOST_DAYS), 30, _DAYS),
        # Adobe's guardrails.
        max_record_bytes=source.read("max_record_bytes", _whole(1), 100_000, _BYTES),
        max_event_bytes=source.read("max_event_bytes", _whole(1), 10_000, _BYTES),
        ingest_processes=source.read(
            "ingest_processes",
            _whole(1),
            None,
            "give a whole number, 1 or more, or leave it out",
        ),
        ingest_cpu_seconds=source.read("ingest_cpu_seconds", _whole(1), 30, _SECONDS_OR_MORE),
        ingest_cpu_seconds_per_mib=source.read("ingest_cpu_seconds_per_mib", _whole(0), 2, _SECONDS),
    )
    if not settings.insecure and not _is_loopback(settings.grpc_address[0]):
        raise source.refusal(
            "grpc_address",
            "is not a loopback address, and nothing protects the calls: listen on 127.0.0.1, or accept that with "
            "--insecure (PROFILE_EXPORT_INSECURE=true)",
        )
    return settings


def _store_settings(source: _Source) -> StoreSettings:
    return StoreSettings(
        data_dir=source.required("data_dir", _path, "give a folder, such as --data-dir .data"),
        database_url=source.read("database_url", _postgresql_url, None, f"{_URL}, or leave it out"),
        log_level=source.read("log_level", _log_level, "info", f"give one of {', '.join(_LOG_LEVELS)}"),
    )


def _work_settings(source: _Source, *, least_workers: int) -> WorkSettings:
    return WorkSettings(
        **asdict(_store_settings(source)),
        workers=source.read(
            "workers", _whole(least_workers), 1, f"give a whole number of jobs, {least_workers} or more"
        ),
        memory_limit_mb=source.read(
            "memory_limit_mb",
            _whole(_LEAST_MEMORY_MB),
            None,
            f"give whole megabytes, {_LEAST_MEMORY_MB} or more, since an export needs as much, or leave it out",
        ),
        threads=source.read("threads", _whole(1), None, "give a whole number, 1 or more, or leave it out"),
        quotas=replace(DEFAULT_QUOTAS, running_jobs=_quota(source, "running_jobs")),
        adopt_lake=source.read("adopt_lake", _flag, default=False, advice="give true or false"),
    )


def _quotas(source: _Source) -> Quotas:
    return Quotas(**{share.name: _quota(source, share.name) for share in fields(Quotas)})


def _quota(source: _Source, name: str) -> int | None:
    default: int = getattr(DEFAULT_QUOTAS, name)
    if name == "staged_bytes":
        megabytes = source.read("quota_staged_mb", _whole(0), default // _MB, _SHARE)
        return megabytes * _MB or None
    return source.read(f"quota_{name}", _whole(0), default, _SHARE) or None


@dataclass(frozen=True, slots=True)
class _Source:
    options: Options
    environ: Mapping[str, str]

    def given(self, name: str) -> str | None:
        option = self.options.get(name)
        if option is not None:
            return str(option)
        return self.environ.get(_variable(name)) or None

    def read(self, name: str, parse: Callable[[str], _T], default: _T, advice: str) -> _T:
        text = self.given(name)
        return default if text is None else self._parsed(name, text, parse, advice)

    def required(self, name: str, parse: Callable[[str], _T], advice: str) -> _T:
        text = self.given(name)
        if text is None:
            raise SettingsError(f"{_names(name)} is required: {advice}.")
        return self._parsed(name, text, parse, advice)

    def _parsed(self, name: str, text: str, parse: Callable[[str], _T], advice: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise self.refusal(name, f"cannot be used: {advice}") from (None if name in _SECRETS else error)

    def refusal(self, name: str, what: str) -> SettingsError:
        if name in _SECRETS:
            return SettingsError(f"{_names(name)}: what was given {what}.")
        # repr, so that a line break in the value does not make two lines of one.
        return SettingsError(f"{_names(name)}: {self.given(name)!r} {what}.")


def _variable(name: str) -> str:
    return f"PROFILE_EXPORT_{name.upper()}"


def _names(name: str) -> str:
    return f"--{name.replace('_', '-')} ({_variable(name)})"


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(text)
    return Path(text)


def _postgresql_url(text: str) -> Secret:
    parts = urlsplit(text)
    if parts.scheme not in {"postgresql", "postgres"} or not text.startswith(f"{parts.scheme}://"):
        raise ValueError
    # Several hosts, each with a port, are for the driver to read; of one, what is wrong with the port is said here.
    if "," not in parts.netloc:
        _ = parts.port
    return Secret(text)


def _address(text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > _HIGHEST_PORT:
        raise ValueError(text)
    if match["v6"] is not None:
        return str(ipaddress.IPv6Address(match["v6"])), int(match["port"])
    return match["host"], int(match["port"])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may resolve to anything


def _flag(text: str) -> bool:
    try:
        return _YES[text.lower()]
    except KeyError as error:
        raise ValueError(text) from error


def _whole(least: int, most: int = 999_999_999) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() also takes signs, underscores and other scripts' digits.
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(text)
        return int(text)

    return parse


def _log_level(text: str) -> str:
    if text.lower() not in _LOG_LEVELS:
        raise ValueError(text)
    return text.lower()
