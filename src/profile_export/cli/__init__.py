"""The command line: talks to a server through `client`, and to `app` to become one."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from profile_export.cli import batches, contexts, datasets, demo, jobs, policies, profiles, schemas, serve
from profile_export.cli.terminal.help import Group
from profile_export.cli.terminal.output import complain
from profile_export.cli.terminal.server import ADDRESS, ORG, SANDBOX, refuse_unknown_variables

__all__ = ["app", "main"]

app = typer.Typer(
    name="profile-export",
    cls=Group,
    help="Merge scattered customer data into one row per person and export it as a tracked job.\n\n"
    "Begin with `profile-export demo`, or with `profile-export serve --data-dir data` and, in another terminal, "
    "`profile-export datasets create CRM --kind record`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _group in {
    "datasets": datasets.group,
    "batches": batches.group,
    "jobs": jobs.group,
    "policies": policies.group,
    "profiles": profiles.group,
    "schemas": schemas.group,
    "contexts": contexts.group,
    "db": serve.group,
}.items():
    app.add_typer(_group, name=_name, cls=Group)
app.command("serve")(serve.serve)
app.command("worker")(serve.worker)
app.command("demo")(demo.demo)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"profile-export {_version()}")
        raise typer.Exit


def _version() -> str:
    try:
        return version("profile-export")
    except PackageNotFoundError:
        return version("profile-export-client")  # the same code, without the server


@app.callback()
def _server(
    context: typer.Context,
    address: Annotated[str | None, ADDRESS] = None,
    org: Annotated[str | None, ORG] = None,
    sandbox: Annotated[str | None, SANDBOX] = None,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version.")
    ] = False,
) -> None:
    refuse_unknown_variables(os.environ, serve.SETTINGS)
    context.obj = {"address": address, "org": org, "sandbox": sandbox}


def main() -> None:
    """Run the command line and exit: 0 done, 1 the server or the job said no, 2 a wrong option, 130 interrupted."""
    _fill_closed_descriptors()
    try:
        code = app(prog_name="profile-export", standalone_mode=False)
    except typer.TyperException as error:
        if line := " ".join(error.format_message().replace("Value error, ", "").split()):
            complain(line)  # empty: the help was shown instead
        code = error.exit_code
    except UnicodeEncodeError as error:  # such as an argument that is no text
        complain(f"{error.object!r} cannot be written in {error.encoding}.")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except OSError as error:
        # What standard output still holds would be written when the interpreter ends, and fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            complain(f"{error.filename or 'Error'}: {error.strerror or error}")
        code = 1
    sys.exit(code)


def _fill_closed_descriptors() -> None:
    """See that no file or connection takes the place of a standard stream that is closed, and is written to as one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = os.fdopen(0)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")
    # What a server says there is for nobody but who waits for it. What a command says there is all that it is for.
    if sys.stdout is None and sys.argv[1:2] not in [["serve"], ["worker"]]:
        complain("Standard output is closed: send it to a file, or to /dev/null.")
        sys.exit(1)
