"""Entry point of `profile-export` and `python -m profile_export`."""

from profile_export.cli import main

if __name__ == "__main__":
    main()
