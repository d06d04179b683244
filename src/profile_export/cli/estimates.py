"""What a job would do, as a table."""

from rich.text import Text

from profile_export.cli.output import console, count, print_json, size, table
from profile_export.cli.watch import LEFT_OUT
from profile_export.client import EstimateJobResponse, Exactness, Figure, as_json


def show_estimate(answer: EstimateJobResponse) -> None:
    """Write figures, each with how exact it is, then what else is worth knowing, then the sample rows."""
    screen = console()
    figures = table("", "estimate", "", "at least", "at most", numbers=("estimate", "at least", "at most"))
    for name in ("profiles", "events", "rows", "files"):
        figures.add_row(name, *_cells(getattr(answer, name)))
    figures.add_row("bytes", size(answer.bytes.value), "about", "", "")
    for one in answer.left_out:
        if one.profiles.value:
            figures.add_row(f"left out: {LEFT_OUT[one.reason]}", *_cells(one.profiles))
    screen.print(figures)
    for unknown in answer.unknown_fields:
        nearest = f"; the nearest is {unknown.nearest}" if unknown.nearest else ""
        line = f"No source has the field {unknown.path}{nearest}."
        screen.print(Text(line, style="yellow"))
    for note in answer.notes:
        screen.print(Text(f"Note: {note}", style="yellow"))
    if answer.sample_rows:
        print_json([as_json(row) for row in answer.sample_rows])


def _cells(figure: Figure) -> tuple[str, str, str, str]:
    if figure.exactness == Exactness.EXACTNESS_EXACT:
        return count(figure.value), "exact", "", ""
    most = count(figure.at_most) if figure.HasField("at_most") else ""
    return count(figure.value), "about", count(figure.at_least), most
