"""The files of TLS that a database's URL names: seen to before a driver fails on one without saying which."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from profile_export.processes.plain_file import check_plain
from profile_export.store.opening import CannotOpenError

_OPTIONS = {"sslrootcert", "sslcert", "sslkey", "sslcrl"}
_OF_THE_SYSTEM = "system"
"""What libpq takes for the certificates that the system trusts."""


def check_tls_files(url: str) -> None:
    """See that the files can be read. A pipe among them would be waited for.

    Raises:
        CannotOpenError: One cannot; says which option names it.
    """
    try:
        named = parse_qsl(urlsplit(url).query)
    except ValueError:
        return  # the driver says what is wrong with the URL
    for option, place in named:
        if option not in _OPTIONS or place == _OF_THE_SYSTEM:
            continue
        try:
            check_plain(Path(place))
            with Path(place).open("rb"):
                pass
        except OSError as error:
            message = (
                f"The file {place}, which {option} in --database-url names, cannot be read: {error.strerror}. Name "
                "another, or leave the option out, then start again."
            )
            raise CannotOpenError(message) from error
