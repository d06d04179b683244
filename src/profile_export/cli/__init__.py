"""The command line: talks to a server through `client`, and to `app` to become one."""
