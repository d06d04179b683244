"""Entry point of `profile-export` and `python -m profile_export`."""

import os

# Before grpc is loaded: what it writes on stderr by itself says nothing that our one line does not say better.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from profile_export.cli import main

if __name__ == "__main__":
    main()
