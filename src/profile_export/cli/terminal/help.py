"""The help: it names what is to be typed, and not the types of values in Python."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperGroup, TyperOption


class Group(TyperGroup):
    """A group of commands whose help shows, beside an option that is switched on, nothing, and a name beside others."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name; None if there is none."""
        command = super().get_command(ctx, cmd_name)
        if command:
            for parameter in (*command.params, command.get_help_option(ctx)):
                _show_no_type(parameter)
        return command

    def get_params(self, ctx: Any) -> Any:
        """Return the options before the command."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            _show_no_type(parameter)
        return parameters


def _show_no_type(parameter: object) -> None:
    if isinstance(parameter, TyperOption) and parameter.is_flag:
        parameter.metavar = ""
    elif isinstance(parameter, TyperOption) and parameter.min is not None:
        limits = (
            f"{parameter.min} or more" if parameter.max is None else f"{parameter.min} to {parameter.max}"
        )
        parameter.metavar = f"{str(parameter.metavar).partition(' ')[0]} ({limits})"
        # It would stand behind that as a formula.
        setattr(parameter, "_get_number_range_help_str", _nothing)  # noqa: B010 - as below
    elif isinstance(parameter, TyperArgument):
        # The name of an argument stands before its type.
        setattr(parameter, "display_type_rich", _nothing)  # noqa: B010 - a method, which mypy lets nobody assign to


def _nothing(*_: Any, **__: Any) -> str:
    return ""
