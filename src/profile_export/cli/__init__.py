"""The command line: talks to a server through `client`, and to `app` to become one."""

import os
import sys

import typer

from profile_export.cli import batches, datasets, demo, jobs, policies, profiles, schemas, serve
from profile_export.cli.terminal.command import DEFAULT_ADDRESS, Server
from profile_export.cli.terminal.output import complain

__all__ = ["app", "main"]

app = typer.Typer(
    name="profile-export",
    help="Merge scattered customer data into one row per person and export it as a tracked job.\n\n"
    "Begin with `profile-export demo`, or with `profile-export serve --data-dir data` and, in another terminal, "
    "`profile-export datasets create CRM --kind record`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(datasets.group, name="datasets")
app.add_typer(batches.group, name="batches")
app.add_typer(jobs.group, name="jobs")
app.add_typer(policies.group, name="policies")
app.add_typer(profiles.group, name="profiles")
app.add_typer(schemas.group, name="schemas")
app.add_typer(serve.group, name="db")
app.command("serve")(serve.serve)
app.command("worker")(serve.worker)
app.command("demo")(demo.demo)


@app.callback()
def _server(
    context: typer.Context,
    address: str = typer.Option(
        DEFAULT_ADDRESS,
        envvar="PROFILE_EXPORT_ADDRESS",
        metavar="HOST:PORT",
        help="Where the server listens.",
    ),
    org: str = typer.Option(
        "", metavar="ORG", help="Organisation of the tenant. Empty: the server's default."
    ),
    sandbox: str = typer.Option(
        "", metavar="NAME", help="Sandbox of the tenant. Empty: the server's default."
    ),
) -> None:
    context.obj = Server(address, org, sandbox)


def main() -> None:
    """Run the command line and exit: 0 done, 1 the server or the job said no, 2 a wrong option, 130 interrupted."""
    try:
        code = app(prog_name="profile-export", standalone_mode=False)
    except typer.TyperException as error:
        if line := " ".join(error.format_message().replace("Value error, ", "").split()):
            complain(line)  # empty: the help was shown instead
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except OSError as error:
        # What standard output still holds would be written when the interpreter ends, and fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            complain(f"{error.filename or 'Error'}: {error.strerror or error}")
        code = 1
    sys.exit(code)
