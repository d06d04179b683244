"""Become a server, or a worker beside servers; and look after the database and its files without one."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer

from profile_export.cli.terminal.cells import count, one_line
from profile_export.cli.terminal.command import AsJson, declared
from profile_export.cli.terminal.output import complain, console, print_facts, print_json


@contextmanager
def importing_server() -> Iterator[None]:
    """End the command with 1 and one line where the block imports what only a server's packages bring."""
    try:
        yield
    except ImportError as error:
        # Of the slim distribution nothing is missing but our own rooms.
        lacking = (
            "" if error.name == "profile_export" else f" ({error.name or one_line(str(error))} is missing)"
        )
        complain(
            f"This command needs the server, which is not installed{lacking}: pip install profile-export"
        )
        raise typer.Exit(1) from None


_Settings = Mapping[str, str | bool | None]
_MOST_SHOWN = 20


# A text goes to the settings as it is, which say what is wrong with a value whether it was an option or a variable.
def _text(metavar: str, what: str) -> Any:
    return Annotated[str | None, typer.Option(metavar=metavar, help=what)]


def _flag(name: str, what: str) -> Any:
    return Annotated[bool | None, typer.Option(name, help=what)]


def _taking(settings: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make what runs with settings into a command that has each of them as an option.

    The command exits with 2 and one line if the settings, or what they name, cannot be used.
    """

    def decorate(work: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            with importing_server():
                from profile_export import app

            chosen = {name: given.pop(name) for name in settings}
            try:
                work(chosen, **given)
            except app.StartError as error:
                complain(str(error))
                raise typer.Exit(2) from None

        keyword = inspect.Parameter.KEYWORD_ONLY
        own = list(inspect.signature(work).parameters.values())[1:]
        options = [
            inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in settings.items()
        ]
        return declared(run, work, [*options, *own])

    return decorate


_MEMORY_LIMIT = _text(
    "MB",
    "The most memory that a process of the engine holds, within a tenth, and one that reads uploads; 512 "
    "or more. A job has one process, an estimate another. Larger data is cut finer and spilled to the "
    "disk; profiles of far more than 10 KB need more than 512. Default: no limit for the engine, 2000 for "
    "what reads uploads.",
)
_THREADS = _text("N", "Threads of the engine. Default: all cores, or as many as the memory limit feeds.")
_QUOTA_RUNNING_JOBS = _text(
    "N", "How many jobs of one tenant run at once, over all servers and workers; 0: any number. Default: 100."
)
_LOG_LEVEL = _text("LEVEL", "debug, info, warning or error.")
_LOG_FORMAT = _text("FORM", "auto, json or text. Default: auto, text on a terminal and else JSON.")
_ADOPT_LAKE = _flag(
    "--adopt-lake",
    "Take the data directory's files over though the database is not the one that they are of. What it "
    "does not know goes to the trash; what it names and is not there is given up.",
)


_SERVE: Mapping[str, Any] = {
    "data_dir": _text("DIR", "Folder that keeps everything; made if missing. Required."),
    "database_url": _text(
        "URL",
        "A PostgreSQL database for the store, such as postgresql://user@host/name. Default: a file in the data "
        "directory.",
    ),
    "grpc_address": _text("HOST:PORT", "Where to listen; port 0: any free one. Default: 127.0.0.1:50051."),
    "insecure": _flag(
        "--insecure",
        "Listen beyond loopback without TLS and tokens: whoever reaches the port may do all.",
    ),
    "workers": _text(
        "N",
        "How many jobs run at once, beside one of a tenant that runs none; 0: none at all. Default: 1.",
    ),
    "memory_limit_mb": _MEMORY_LIMIT,
    "threads": _THREADS,
    "log_level": _LOG_LEVEL,
    "log_format": _LOG_FORMAT,
    "adopt_lake": _ADOPT_LAKE,
    "drain_seconds": _text("SECONDS", "How long calls may take to finish when it stops. Default: 10."),
    "connection_age_seconds": _text(
        "SECONDS",
        "The age at which a client has to connect anew, so that it spreads over the servers behind one "
        "address; calls under way may take as long again. Default: 3600.",
    ),
    "download_grace_seconds": _text(
        "SECONDS", "How long files that were dropped stay for downloads. Default: 3600."
    ),
    "max_record_bytes": _text("BYTES", "The largest record; larger ones are rejected. Default: 100000."),
    "max_event_bytes": _text("BYTES", "The largest experience event. Default: 10000."),
    "ingest_processes": _text(
        "N",
        "How many processes read uploads and schemas at most; a tenant has one while others wait. Default: one "
        "per core, at least 2.",
    ),
    "ingest_cpu_seconds": _text(
        "SECONDS",
        "Processor time that reading an upload or a schema may take; five times that by the clock. Default: 30.",
    ),
    "ingest_cpu_seconds_per_mib": _text(
        "SECONDS", "What it may take more for each MiB that was sent. Default: 2."
    ),
    "mirror_keep_minutes": _text(
        "MINUTES",
        "How long Iceberg snapshots, and the files of reverted batches in them, stay. Default: 60.",
    ),
    "job_retention_days": _text(
        "DAYS",
        "How long jobs stay after they ended. Then they are removed, and for 30 days more are told from those "
        "that never were; their output stays. Default: for ever.",
    ),
    "watch_history_minutes": _text(
        "MINUTES", "How far back a watch of all jobs can go on after it broke off. Default: 1440, a day."
    ),
    "upload_idle_minutes": _text(
        "MINUTES",
        "How long an upload may send nothing before it is ended; it can be resumed. Default: 10.",
    ),
    "upload_expiry_hours": _text(
        "HOURS", "How long after its last byte a batch that is not complete is given up. Default: 24."
    ),
    "quota_waiting_jobs": _text(
        "N", "How many jobs of one tenant wait for a worker; 0: any number. Default: 1000."
    ),
    "quota_running_jobs": _QUOTA_RUNNING_JOBS,
    "quota_datasets": _text("N", "How many datasets one tenant has; 0: any number. Default: 10000."),
    "quota_loading_batches": _text(
        "N", "How many batches of one tenant are being uploaded; 0: any number. Default: 1000."
    ),
    "quota_staged_mb": _text(
        "MB",
        "How many bytes of one tenant are kept of uploads that do not count yet; 0: any number. Default: "
        "100000.",
    ),
    "quota_watches": _text(
        "N", "How many watches of one tenant a server has; 0: any number. Default: 25000."
    ),
    "quota_transfers": _text(
        "N",
        "How many uploads and downloads of one tenant a server has at once; 0: any number. Default: 256.",
    ),
    "trash_days": _text(
        "DAYS",
        "How long files that the database does not know stay in the trash before they are removed. Default: 30.",
    ),
}
SETTINGS = tuple(_SERVE)
"""The names of all settings; each has a variable."""


@_taking(_SERVE)
def serve(settings: _Settings) -> None:
    """Run a server until it is told to stop (Ctrl-C or SIGTERM).

    When it is ready it prints `listening on HOST:PORT`. Each option can also come from a variable such as
    PROFILE_EXPORT_DATA_DIR; an option beats its variable.

    Example: `profile-export serve --data-dir data --grpc-address 127.0.0.1:50051`
    """
    with importing_server():
        from profile_export import app

    app.serve(settings)


@_taking(
    {
        "data_dir": _text("DIR", "The folder of the servers, with their files. Required."),
        "database_url": _text("URL", "The PostgreSQL database of the servers. Required."),
        "workers": _text(
            "N", "How many jobs run at once, beside one of a tenant that runs none. Default: 1."
        ),
        "memory_limit_mb": _MEMORY_LIMIT,
        "threads": _THREADS,
        "quota_running_jobs": _QUOTA_RUNNING_JOBS,
        "log_level": _LOG_LEVEL,
        "log_format": _LOG_FORMAT,
        "adopt_lake": _ADOPT_LAKE,
    }
)
def worker(settings: _Settings) -> None:
    """Run jobs beside servers that share a PostgreSQL database, until it is told to stop (Ctrl-C or SIGTERM).

    When it is ready it prints `working`. Start as many as you like, on any machine that sees the same folder. One that
    dies loses nothing: another goes on with its job, from the last range that was recorded. Options can also come from
    variables, as those of `serve`.

    Example: `profile-export worker --data-dir data --database-url postgresql://me@db/exports`
    """
    with importing_server():
        from profile_export import app

    app.work(settings)


group = typer.Typer(help="Look after the database and its files.", no_args_is_help=True)
_DATABASE = {
    "data_dir": _text("DIR", "The folder of the server; or PROFILE_EXPORT_DATA_DIR. Required."),
    "database_url": _text(
        "URL",
        "Its PostgreSQL database, if it has one; or PROFILE_EXPORT_DATABASE_URL. Default: a file in the data "
        "directory.",
    ),
    "log_level": _LOG_LEVEL,
    "log_format": _LOG_FORMAT,
}


@group.command("status")
@_taking(_DATABASE)
def status(settings: _Settings, *, as_json: AsJson = False) -> None:
    """Say which version the tables are of, and whose the files are. It changes nothing.

    Example: `profile-export db status --data-dir data`
    """
    with importing_server():
        from profile_export import app

    found = app.db_status(settings)
    if as_json:
        print_json(asdict(found))
        return
    print_facts(
        [
            ("tables", found.revision or "none"),
            ("newest known", found.newest_revision or "none"),
            ("instance of the database", found.database_instance or "none"),
            ("instance of the files", found.lake_instance or "none"),
            ("open elsewhere", "yes" if found.in_use else "no"),
        ]
    )


@group.command("upgrade")
@_taking(_DATABASE)
def upgrade(settings: _Settings, *, as_json: AsJson = False) -> None:
    """Bring the tables up to date, as a server does when it starts. No server or worker may run.

    Example: `profile-export db upgrade --data-dir data`
    """
    with importing_server():
        from profile_export import app

    before, after = app.db_upgrade(settings)
    if as_json:
        print_json({"from": before, "to": after})
    elif before == after:
        console().print(f"The tables are up to date: {after}.")
    else:
        console().print(f"Upgraded from {before} to {after}.")


@group.command("check")
@_taking(_DATABASE)
def check(settings: _Settings, *, as_json: AsJson = False) -> None:
    """Say whether the database and the files agree; end with 1 if not. It changes nothing, and may run beside a server.

    It looks for files that are missing or have another size, for folders and uploads that the database does not know,
    and lists what is in the trash. What the files hold is for `jobs verify`.

    Example: `profile-export db check --data-dir data`
    """
    with importing_server():
        from profile_export import app

    found = app.db_check(settings)
    if as_json:
        print_json(asdict(found) | {"agree": found.agree})
    else:
        if not found.same_instance:
            console().print("The files are of another database.")
        for name, paths in (
            ("missing", found.missing),
            ("of another size", found.other_size),
            ("folders that the database does not know", found.unknown_folders),
            ("uploads that the database does not know", found.unknown_uploads),
            ("uploads under way", found.staged),
            ("in the trash", found.trash),
        ):
            _show(name, paths)
        console().print(
            f"{count(found.files)} files are named; database and files {'agree' if found.agree else 'do not agree'}."
        )
    if not found.agree:
        raise typer.Exit(1)


def _show(name: str, paths: Sequence[str]) -> None:
    if not paths:
        return
    console().print(f"{name}: {count(len(paths))}")
    for path in paths[:_MOST_SHOWN]:
        console().print(f"  {one_line(path)}", soft_wrap=True)
    if len(paths) > _MOST_SHOWN:
        console().print(f"  and {count(len(paths) - _MOST_SHOWN)} more: --json lists all")
