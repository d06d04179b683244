"""Which server a command talks to, and as whom: options, variables, the context in use, in this order."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

DEFAULT_ADDRESS = "127.0.0.1:50051"
_PANEL = "Server (also before the command)"
ADDRESS = typer.Option(
    "--address",
    metavar="HOST:PORT",
    help=f"Where the server listens; or PROFILE_EXPORT_ADDRESS. Default: {DEFAULT_ADDRESS}.",
    rich_help_panel=_PANEL,
)
ORG = typer.Option(
    "--org",
    metavar="ORG",
    help="Organisation of the tenant; or PROFILE_EXPORT_ORG. Default: the server's.",
    rich_help_panel=_PANEL,
)
SANDBOX = typer.Option(
    "--sandbox",
    metavar="NAME",
    help="Sandbox of the tenant; or PROFILE_EXPORT_SANDBOX. Default: the server's.",
    rich_help_panel=_PANEL,
)

_PREFIX = "PROFILE_EXPORT_"
_NEAR = 0.5
_HOST_AND_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^:\[\]\s/]+):([0-9]{1,5})")
_HIGHEST_PORT = 65_535
_TENANT_NAME = re.compile(r"[A-Za-z0-9@_.-]{0,64}")


@dataclass(frozen=True)
class Server:
    """Which server to talk to, and as whom. An empty organisation or sandbox is the server's default."""

    address: str = DEFAULT_ADDRESS
    org: str = ""
    sandbox: str = ""

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            typer.BadParameter: A name is not of the form that a server takes.
        """
        found = _HOST_AND_PORT.fullmatch(self.address)
        if not found or int(found[1]) > _HIGHEST_PORT or not self.address.isprintable():
            raise typer.BadParameter(
                f"--address {self.address!r} is no HOST:PORT, such as {DEFAULT_ADDRESS}."
            )
        for option, name in (("--org", self.org), ("--sandbox", self.sandbox)):
            if not _TENANT_NAME.fullmatch(name):
                raise typer.BadParameter(
                    f"{option} {name!r} is no name: it has at most 64 characters, of A-Z a-z 0-9 @ _ . and -."
                )

    @property
    def tenant(self) -> str:
        """The tenant in words, such as `sandbox dev`; empty if it is the server's default."""
        parts = [f"sandbox {self.sandbox}"] if self.sandbox else []
        parts += [f"organisation {self.org}"] if self.org else []
        return " of ".join(parts)

    def but(self, **given: str | None) -> Server:
        """Return it with what is given instead; None is not given.

        Raises:
            typer.BadParameter: As a new one.
        """
        return Server(**asdict(self) | {name: text for name, text in given.items() if text is not None})


def chosen(context: typer.Context, **options: str | None) -> dict[str, str | None]:
    """Return what the options of a command say of the server, and those before the command where they say nothing."""
    before: Mapping[str, str | None] = context.find_root().obj
    return {name: before[name] if text is None else text for name, text in options.items()}


def server_of(environ: Mapping[str, str], options: Mapping[str, str | None]) -> Server:
    """Return the server that options name, else variables, else the context in use. An empty variable is not given.

    Raises:
        typer.BadParameter: A name, or the file of the contexts, cannot be used.
    """
    variables = {name: environ.get(_PREFIX + name.upper()) or None for name in options}
    return Contexts.load().in_use.but(**variables).but(**options)


def refuse_unknown_variables(environ: Mapping[str, str], settings: Collection[str]) -> None:
    """See that each `PROFILE_EXPORT_*` variable is read by somebody: by a server, as a setting, or by a client.

    Raises:
        typer.BadParameter: One is not, and may be mistyped.
    """
    known = {_PREFIX + name.upper() for name in (*settings, *asdict(Server()))}
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in known and environ[name]:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
            advice = f" The nearest is {nearest[0]}." if nearest else ""
            raise typer.BadParameter(f"The variable {name!r} is unknown: unset it.{advice}")


# --- Contexts ---


@dataclass(frozen=True)
class Contexts:
    """Servers by the names that somebody gave them, and the name of the one in use; empty: none is."""

    servers: Mapping[str, Server]
    current: str = ""

    @property
    def in_use(self) -> Server:
        """The server in use; without one, the default."""
        return self.servers.get(self.current, Server())

    @staticmethod
    def path() -> Path:
        """Return the file that keeps them."""
        home = os.environ.get("XDG_CONFIG_HOME")
        return (Path(home) if home else Path.home() / ".config") / "profile-export" / "contexts.json"

    @classmethod
    def load(cls) -> Contexts:
        """Read them; without a file there are none.

        Raises:
            typer.BadParameter: The file cannot be used.
        """
        path = cls.path()
        try:
            kept: Any = json.loads(path.read_text("utf-8"))
            servers = {str(name): Server(**server) for name, server in kept["contexts"].items()}
            return cls(servers, str(kept["current"]))
        except (FileNotFoundError, NotADirectoryError):
            return cls({})
        except typer.BadParameter as error:
            raise typer.BadParameter(f"{path}: {error.message}") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise typer.BadParameter(
                f"{path} cannot be read: put it right or remove it, then use `profile-export contexts set`."
            ) from None

    def save(self) -> None:
        """Write them, for this user alone; OSError if the file cannot be written."""
        path = self.path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = {
            "current": self.current,
            "contexts": {name: asdict(server) for name, server in sorted(self.servers.items())},
        }
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
        new.replace(path)
