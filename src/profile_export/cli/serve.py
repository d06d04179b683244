"""Become a server, or a worker beside servers."""

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from profile_export.cli.terminal.output import complain

# The texts go to the settings as they are, which say what is wrong with a value whether it was an option or a variable.
Text = str | None
MemoryLimit = Annotated[
    Text,
    typer.Option(
        metavar="MB",
        help="The most memory that a process of the engine holds, within a tenth, and one that reads uploads; 512 or "
        "more. A job has one process, an estimate another. Larger data is cut finer and spilled to the disk; profiles "
        "of far more than 10 KB need more than 512. Default: no limit for the engine, 2000 for what reads uploads.",
    ),
]
Threads = Annotated[
    Text,
    typer.Option(
        metavar="N", help="Threads of the engine. Default: all cores, or as many as the memory limit feeds."
    ),
]
QuotaRunningJobs = Annotated[
    Text,
    typer.Option(
        metavar="N",
        help="How many jobs of one tenant run at once, over all servers and workers; 0: any number. Default: 100.",
    ),
]
LogLevel = Annotated[Text, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")]
AdoptLake = Annotated[
    bool | None,
    typer.Option(
        "--adopt-lake",
        help="Take the data directory's files over though the database is not the one that they are of. What it "
        "does not know goes to the trash; what it names and is not there is given up.",
    ),
]


def serve(
    *,
    data_dir: Annotated[
        Text, typer.Option(metavar="DIR", help="Folder that keeps everything; made if missing. Required.")
    ] = None,
    database_url: Annotated[
        Text,
        typer.Option(
            metavar="URL",
            help="A PostgreSQL database for the store, such as postgresql://user@host/name. Default: a file in "
            "the data directory.",
        ),
    ] = None,
    grpc_address: Annotated[
        Text,
        typer.Option(
            metavar="HOST:PORT", help="Where to listen; port 0: any free one. Default: 127.0.0.1:50051."
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure",
            help="Listen beyond loopback without TLS and tokens: whoever reaches the port may do all.",
        ),
    ] = None,
    workers: Annotated[
        Text,
        typer.Option(
            metavar="N",
            help="How many jobs run at once, beside one of a tenant that runs none; 0: none at all. Default: 1.",
        ),
    ] = None,
    memory_limit_mb: MemoryLimit = None,
    threads: Threads = None,
    log_level: LogLevel = None,
    adopt_lake: AdoptLake = None,
    drain_seconds: Annotated[
        Text,
        typer.Option(metavar="SECONDS", help="How long calls may take to finish when it stops. Default: 10."),
    ] = None,
    connection_age_seconds: Annotated[
        Text,
        typer.Option(
            metavar="SECONDS",
            help="The age at which a client has to connect anew, so that it spreads over the servers behind one "
            "address; calls under way may take as long again. Default: 3600.",
        ),
    ] = None,
    download_grace_seconds: Annotated[
        Text,
        typer.Option(
            metavar="SECONDS", help="How long files that were dropped stay for downloads. Default: 3600."
        ),
    ] = None,
    max_record_bytes: Annotated[
        Text,
        typer.Option(metavar="BYTES", help="The largest record; larger ones are rejected. Default: 100000."),
    ] = None,
    max_event_bytes: Annotated[
        Text, typer.Option(metavar="BYTES", help="The largest experience event. Default: 10000.")
    ] = None,
    ingest_processes: Annotated[
        Text,
        typer.Option(
            metavar="N",
            help="How many processes read uploads and schemas at most; a tenant has one while others wait. Default: "
            "one per core, at least 2.",
        ),
    ] = None,
    ingest_cpu_seconds: Annotated[
        Text,
        typer.Option(
            metavar="SECONDS",
            help="Processor time that reading an upload or a schema may take; five times that by the clock. "
            "Default: 30.",
        ),
    ] = None,
    ingest_cpu_seconds_per_mib: Annotated[
        Text,
        typer.Option(metavar="SECONDS", help="What it may take more for each MiB that was sent. Default: 2."),
    ] = None,
    mirror_keep_minutes: Annotated[
        Text,
        typer.Option(
            metavar="MINUTES",
            help="How long Iceberg snapshots, and the files of reverted batches in them, stay. Default: 60.",
        ),
    ] = None,
    job_retention_days: Annotated[
        Text,
        typer.Option(
            metavar="DAYS",
            help="How long jobs stay after they ended. Then they are removed, and for 30 days more are told from "
            "those that never were; their output stays. Default: for ever.",
        ),
    ] = None,
    watch_history_minutes: Annotated[
        Text,
        typer.Option(
            metavar="MINUTES",
            help="How far back a watch of all jobs can go on after it broke off. Default: 1440, a day.",
        ),
    ] = None,
    upload_idle_minutes: Annotated[
        Text,
        typer.Option(
            metavar="MINUTES",
            help="How long an upload may send nothing before it is ended; it can be resumed. Default: 10.",
        ),
    ] = None,
    upload_expiry_hours: Annotated[
        Text,
        typer.Option(
            metavar="HOURS",
            help="How long after its last byte a batch that is not complete is given up. Default: 24.",
        ),
    ] = None,
    quota_waiting_jobs: Annotated[
        Text,
        typer.Option(
            metavar="N", help="How many jobs of one tenant wait for a worker; 0: any number. Default: 1000."
        ),
    ] = None,
    quota_running_jobs: QuotaRunningJobs = None,
    quota_datasets: Annotated[
        Text,
        typer.Option(metavar="N", help="How many datasets one tenant has; 0: any number. Default: 10000."),
    ] = None,
    quota_loading_batches: Annotated[
        Text,
        typer.Option(
            metavar="N",
            help="How many batches of one tenant are being uploaded; 0: any number. Default: 1000.",
        ),
    ] = None,
    quota_staged_mb: Annotated[
        Text,
        typer.Option(
            metavar="MB",
            help="How many bytes of one tenant are kept of uploads that do not count yet; 0: any number. "
            "Default: 100000.",
        ),
    ] = None,
    quota_watches: Annotated[
        Text,
        typer.Option(
            metavar="N", help="How many watches of one tenant a server has; 0: any number. Default: 25000."
        ),
    ] = None,
    quota_transfers: Annotated[
        Text,
        typer.Option(
            metavar="N",
            help="How many uploads and downloads of one tenant a server has at once; 0: any number. Default: 256.",
        ),
    ] = None,
    trash_days: Annotated[
        Text,
        typer.Option(
            metavar="DAYS",
            help="How long files that the database does not know stay in the trash before they are removed. "
            "Default: 30.",
        ),
    ] = None,
) -> None:
    """Run a server until it is told to stop (Ctrl-C or SIGTERM).

    When it is ready it prints `listening on HOST:PORT`. Each option can also come from a variable such as
    PROFILE_EXPORT_DATA_DIR; an option beats its variable.

    Example: `profile-export serve --data-dir data --grpc-address 127.0.0.1:50051`
    """
    from profile_export import app

    options = {
        "data_dir": data_dir,
        "database_url": database_url,
        "grpc_address": grpc_address,
        "insecure": insecure,
        "workers": workers,
        "memory_limit_mb": memory_limit_mb,
        "threads": threads,
        "log_level": log_level,
        "adopt_lake": adopt_lake,
        "drain_seconds": drain_seconds,
        "connection_age_seconds": connection_age_seconds,
        "max_record_bytes": max_record_bytes,
        "max_event_bytes": max_event_bytes,
        "download_grace_seconds": download_grace_seconds,
        "ingest_processes": ingest_processes,
        "ingest_cpu_seconds": ingest_cpu_seconds,
        "ingest_cpu_seconds_per_mib": ingest_cpu_seconds_per_mib,
        "mirror_keep_minutes": mirror_keep_minutes,
        "job_retention_days": job_retention_days,
        "watch_history_minutes": watch_history_minutes,
        "upload_idle_minutes": upload_idle_minutes,
        "upload_expiry_hours": upload_expiry_hours,
        "quota_waiting_jobs": quota_waiting_jobs,
        "quota_running_jobs": quota_running_jobs,
        "quota_datasets": quota_datasets,
        "quota_loading_batches": quota_loading_batches,
        "quota_staged_mb": quota_staged_mb,
        "quota_watches": quota_watches,
        "quota_transfers": quota_transfers,
        "trash_days": trash_days,
    }
    _become(app.serve, options, app.StartError)


def worker(
    *,
    data_dir: Annotated[
        Text, typer.Option(metavar="DIR", help="The folder of the servers, with their files. Required.")
    ] = None,
    database_url: Annotated[
        Text, typer.Option(metavar="URL", help="The PostgreSQL database of the servers. Required.")
    ] = None,
    workers: Annotated[
        Text,
        typer.Option(
            metavar="N", help="How many jobs run at once, beside one of a tenant that runs none. Default: 1."
        ),
    ] = None,
    memory_limit_mb: MemoryLimit = None,
    threads: Threads = None,
    quota_running_jobs: QuotaRunningJobs = None,
    log_level: LogLevel = None,
    adopt_lake: AdoptLake = None,
) -> None:
    """Run jobs beside servers that share a PostgreSQL database, until it is told to stop (Ctrl-C or SIGTERM).

    When it is ready it prints `working`. Start as many as you like, on any machine that sees the same folder. One that
    dies loses nothing: another goes on with its job, from the last range that was recorded. Options can also come from
    variables, as those of `serve`.

    Example: `profile-export worker --data-dir data --database-url postgresql://me@db/exports`
    """
    from profile_export import app

    options = {
        "data_dir": data_dir,
        "database_url": database_url,
        "workers": workers,
        "memory_limit_mb": memory_limit_mb,
        "threads": threads,
        "quota_running_jobs": quota_running_jobs,
        "log_level": log_level,
        "adopt_lake": adopt_lake,
    }
    _become(app.work, options, app.StartError)


def _become(
    run: Callable[[Mapping[str, str | bool | None]], None],
    options: Mapping[str, str | bool | None],
    start_error: type[Exception],
) -> None:
    try:
        run(options)
    except start_error as error:
        complain(str(error))
        raise typer.Exit(2) from None
