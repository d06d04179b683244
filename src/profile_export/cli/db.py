"""`profile-export db …`: the database and its files, without a server."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, TypeVar

import typer

from profile_export.cli.terminal.command import AsJson
from profile_export.cli.terminal.output import complain, console, count, fact_table, print_json

_MOST_SHOWN = 20
_Answer = TypeVar("_Answer")

group = typer.Typer(help="Look after the database and its files.", no_args_is_help=True)
DataDir = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The folder of the server; or PROFILE_EXPORT_DATA_DIR. Required."),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Its PostgreSQL database, if it has one; or PROFILE_EXPORT_DATABASE_URL. Default: a file in the data "
        "directory.",
    ),
]
LogLevel = Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")]


@group.command()
def status(
    *,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    log_level: LogLevel = None,
    as_json: AsJson = False,
) -> None:
    """Say which version the tables are of, and whose the files are. It changes nothing.

    Example: `profile-export db status --data-dir data`
    """
    from profile_export import app

    found = _asked(lambda: app.db_status(_options(data_dir, database_url, log_level)), app.StartError)
    if as_json:
        print_json(asdict(found))
        return
    rows = {
        "tables": found.revision or "none",
        "newest known": found.newest_revision or "none",
        "instance of the database": found.database_instance or "none",
        "instance of the files": found.lake_instance or "none",
        "open elsewhere": "yes" if found.in_use else "no",
    }
    console().print(fact_table(rows.items()))


@group.command()
def upgrade(
    *,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    log_level: LogLevel = None,
    as_json: AsJson = False,
) -> None:
    """Bring the tables up to date, as a server does when it starts. No server or worker may run.

    Example: `profile-export db upgrade --data-dir data`
    """
    from profile_export import app

    before, after = _asked(
        lambda: app.db_upgrade(_options(data_dir, database_url, log_level)), app.StartError
    )
    if as_json:
        print_json({"from": before, "to": after})
    elif before == after:
        console().print(f"The tables are up to date: {after}.")
    else:
        console().print(f"Upgraded from {before} to {after}.")


@group.command()
def check(
    *,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    log_level: LogLevel = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the database and the files agree; end with 1 if not. It changes nothing, and may run beside a server.

    It looks for files that are missing or have another size, for folders and uploads that the database does not know,
    and lists what is in the trash. What the files hold is for `jobs verify`.

    Example: `profile-export db check --data-dir data`
    """
    from profile_export import app

    found = _asked(lambda: app.db_check(_options(data_dir, database_url, log_level)), app.StartError)
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
        console().print(f"  {path}")
    if len(paths) > _MOST_SHOWN:
        console().print(f"  and {count(len(paths) - _MOST_SHOWN)} more: --json lists all")


def _options(
    data_dir: str | None, database_url: str | None, log_level: str | None
) -> dict[str, str | bool | None]:
    return {"data_dir": data_dir, "database_url": database_url, "log_level": log_level}


def _asked(ask: Callable[[], _Answer], start_error: type[Exception]) -> _Answer:
    try:
        return ask()
    except start_error as error:
        complain(str(error))
        raise typer.Exit(2) from None
