"""Entry point of `profile-export` and `python -m profile_export`."""

import os
import sys

# Before grpc is loaded: what it writes on stderr by itself says nothing that our one line does not say better.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def main() -> None:
    """Run the command line, as `cli.main` does."""
    try:
        # In here, so that a Ctrl-C while the libraries are loaded ends as any other does.
        from profile_export.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
