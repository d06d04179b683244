"""What an operator can set, from options and `PROFILE_EXPORT_*` variables."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints
from urllib.parse import urlsplit

from profile_export.domain.catalog.allowances import DEFAULT_QUOTAS, Quotas

Options = Mapping[str, str | bool | None]
_S = TypeVar("_S", bound="StoreSettings")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]\s]+)):(?P<port>[0-9]{1,5})")
_HIGHEST_PORT = 65_535
_TRUTHS = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)
_TRUE_OR_FALSE = "give true or false"
_HOST_AND_PORT = "give HOST:PORT, such as 127.0.0.1:50051 or [::1]:0 (port 0: any free one)"
_MEMORY_WHY = ", since an export needs as much"
_SHARE = "give a whole number, or 0 for no limit"
_HIGHEST = 999_999_999
_MB = 1_000_000
_URL = "give postgresql://USER@HOST:PORT/DATABASE, with %XX for what is special in it"
_LEAST_MEMORY_MB = 512
"""Less, and exports of profiles with links fail: their merge needs that much for its operators alone."""
_CHILD_MEMORY_MB = 2_000
_MOST_DAYS = 36_500
_SECRETS = ("database_url",)
_LOG_LEVELS = ("debug", "info", "warning", "error")
_LOG_FORMATS = ("auto", "json", "text")


class Secret:
    """A text that may hold a password: what prints, logs or traces it gets stars instead."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, to use it."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reveal() == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "***"


class SettingsError(Exception):
    """A setting that cannot be used. Its text is one line that names option, variable and the way out."""


# --- How a setting is read ---


class _Setting(NamedTuple):
    """How the text of a setting is read, its default, and the advice where a text cannot be used."""

    parse: Callable[[str], Any]
    default: Any
    advice: str


_REQUIRED = object()
"""Stands for the default of a setting that must be given."""


def _whole(what: str, least: int, default: int | None, most: int | None = None, why: str = "") -> _Setting:
    """Return a setting of which `what` is given, a whole number within limits; None leaves it open."""
    limits = f"{least} or more" if most is None else f"{least} to {most}"
    left_out = ", or leave it out" if default is None else ""
    return _Setting(_within(least, most or _HIGHEST), default, f"give {what}, {limits}{why}{left_out}")


def _within(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() also takes signs, underscores and other scripts' digits.
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(text)
        return int(text)

    return parse


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(text)
    return Path(text)


def _postgresql_url(text: str) -> Secret:
    parts = urlsplit(text)
    if parts.scheme not in {"postgresql", "postgres"} or not text.startswith(f"{parts.scheme}://"):
        raise ValueError
    # The driver reads several hosts, each with a port. The port of a single host is checked here.
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


def _flag(text: str) -> bool:
    try:
        return _TRUTHS[text.lower()]
    except KeyError as error:
        raise ValueError(text) from error


def _one_of(words: Sequence[str], default: str) -> _Setting:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(text)
        return text.lower()

    return _Setting(parse, default, f"give one of {', '.join(words)}")


# --- The settings ---


def _told(value: Any) -> Any:
    if isinstance(value, Quotas):
        return {share.name: getattr(value, share.name) for share in fields(value)}
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    return str(value) if isinstance(value, Path | Secret) else value


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where everything is, and how the log looks.

    `database_url` names a PostgreSQL database for the store, None: it is a file in `data_dir`, as all else is.
    `log_format` `auto` is `text` on a terminal, else `json`.
    """

    data_dir: Annotated[Path, _Setting(_path, _REQUIRED, "give a folder, such as --data-dir .data")]
    database_url: Annotated[Secret | None, _Setting(_postgresql_url, None, f"{_URL}, or leave it out")]
    log_level: Annotated[str, _one_of(_LOG_LEVELS, "info")]
    log_format: Annotated[str, _one_of(_LOG_FORMATS, "auto")]

    @property
    def url(self) -> str | None:
        """The URL of the database, with its password."""
        return None if self.database_url is None else self.database_url.reveal()

    def told(self) -> dict[str, Any]:
        """Return all settings by their names, as a log may show them: secrets have stars instead."""
        return {one.name: _told(getattr(self, one.name)) for one in fields(self)}


@dataclass(frozen=True, slots=True)
class WorkSettings(StoreSettings):
    """How jobs are run, by a server or by a worker process.

    `workers` is how many jobs run at once, and one more of a tenant that runs none. `memory_limit_mb` is what a
    process of the engine may hold at most (peak RSS, in 10^6 bytes, within a tenth); a job has one such process, an
    estimate another. None bounds DuckDB alone, by its own default. `threads` bounds the engine's threads, None: one
    per core; a small memory limit allows fewer. `quotas` are the shares of each tenant, of which a worker process
    knows the running jobs alone. `adopt_lake` gives the database all files in `data_dir`.
    """

    workers: Annotated[int, _whole("a whole number of jobs", 1, 1)]
    memory_limit_mb: Annotated[int | None, _whole("whole megabytes", _LEAST_MEMORY_MB, None, why=_MEMORY_WHY)]
    threads: Annotated[int | None, _whole("a whole number", 1, None)]
    quotas: Quotas
    adopt_lake: Annotated[bool, _Setting(_flag, False, _TRUE_OR_FALSE)]


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

    workers: Annotated[int, _whole("a whole number of jobs", 0, 1)]
    grpc_address: Annotated[tuple[str, int], _Setting(_address, ("127.0.0.1", 50_051), _HOST_AND_PORT)]
    insecure: Annotated[bool, _Setting(_flag, False, _TRUE_OR_FALSE)]
    drain_seconds: Annotated[int, _whole("whole seconds", 0, 10)]
    connection_age_seconds: Annotated[int, _whole("whole seconds", 1, 3600)]
    # Adobe's guardrails.
    max_record_bytes: Annotated[int, _whole("whole bytes", 1, 100_000)]
    max_event_bytes: Annotated[int, _whole("whole bytes", 1, 10_000)]
    ingest_processes: Annotated[int | None, _whole("a whole number", 1, None)]
    ingest_cpu_seconds: Annotated[int, _whole("whole seconds", 1, 30)]
    ingest_cpu_seconds_per_mib: Annotated[int, _whole("whole seconds", 0, 2)]
    download_grace_seconds: Annotated[int, _whole("whole seconds", 0, 3600)]
    mirror_keep_minutes: Annotated[int, _whole("whole minutes", 1, 60)]
    job_retention_days: Annotated[int | None, _whole("whole days", 1, None, _MOST_DAYS)]
    watch_history_minutes: Annotated[int, _whole("whole minutes", 1, 1440)]
    upload_idle_minutes: Annotated[int, _whole("whole minutes", 1, 10)]
    upload_expiry_hours: Annotated[int, _whole("whole hours", 1, 24)]
    trash_days: Annotated[int, _whole("whole days", 1, 30, _MOST_DAYS)]

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
    return _read(StoreSettings, _Source(options, environ))


def load_worker(options: Options, environ: Mapping[str, str]) -> WorkSettings:
    """Read the settings of a worker process, as `load` does those of a server.

    Raises:
        SettingsError: A value is missing or cannot be used.
    """
    source = _Source(options, environ)
    advice = f"{_URL}: only servers over one PostgreSQL database share jobs"
    source.read("database_url", _Setting(_postgresql_url, _REQUIRED, advice))
    quotas = replace(DEFAULT_QUOTAS, running_jobs=_quota(source, "running_jobs"))
    return _read(WorkSettings, source, quotas=quotas)


def load(options: Options, environ: Mapping[str, str]) -> ServeSettings:
    """Read the settings of a server. Pure: it looks at nothing but its arguments.

    Args:
        options: What stood on the command line, by field of `ServeSettings`; None or missing: not given.
        environ: The environment. An option beats its variable, and a variable that is empty is not given.

    Raises:
        SettingsError: A value is missing or cannot be used.
    """
    source = _Source(options, environ)
    quotas = Quotas(**{share.name: _quota(source, share.name) for share in fields(Quotas)})
    settings = _read(ServeSettings, source, quotas=quotas)
    if not settings.insecure and not _is_loopback(settings.grpc_address[0]):
        raise source.refusal(
            "grpc_address",
            "is not a loopback address, and nothing protects the calls: listen on 127.0.0.1, or accept that with "
            "--insecure (PROFILE_EXPORT_INSECURE=true)",
        )
    return settings


def _read(kind: type[_S], source: _Source, **others: Any) -> _S:
    hints = get_type_hints(kind, include_extras=True)
    settings = {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}
    return kind(**{name: source.read(name, setting) for name, setting in settings.items()}, **others)


def _quota(source: _Source, name: str) -> int | None:
    default: int = getattr(DEFAULT_QUOTAS, name)
    if name == "staged_bytes":
        megabytes = source.read("quota_staged_mb", _Setting(_within(0, _HIGHEST), default // _MB, _SHARE))
        return megabytes * _MB or None
    return source.read(f"quota_{name}", _Setting(_within(0, _HIGHEST), default, _SHARE)) or None


@dataclass(frozen=True, slots=True)
class _Source:
    options: Options
    environ: Mapping[str, str]

    def given(self, name: str) -> str | None:
        option = self.options.get(name)
        if option is not None:
            return str(option)
        return self.environ.get(_variable(name)) or None

    def read(self, name: str, setting: _Setting) -> Any:
        text = self.given(name)
        if text is None and setting.default is _REQUIRED:
            raise SettingsError(f"{_names(name)} is required: {setting.advice}.")
        if text is None:
            return setting.default
        try:
            return setting.parse(text)
        except ValueError as error:
            refusal = self.refusal(name, f"cannot be used: {setting.advice}")
            raise refusal from (None if name in _SECRETS else error)

    def refusal(self, name: str, what: str) -> SettingsError:
        if name in _SECRETS:
            return SettingsError(f"{_names(name)}: what was given {what}.")
        # repr, so that a line break in the value does not make two lines of one.
        return SettingsError(f"{_names(name)}: {self.given(name)!r} {what}.")


def _variable(name: str) -> str:
    return f"PROFILE_EXPORT_{name.upper()}"


def _names(name: str) -> str:
    return f"--{name.replace('_', '-')} ({_variable(name)})"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may resolve to anything
