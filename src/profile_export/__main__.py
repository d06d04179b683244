"""Entry point of `profile-export` and `python -m profile_export`."""


def main() -> None:
    """Run the command line."""
    raise SystemExit("profile-export: the command line is not built yet")


if __name__ == "__main__":
    main()
