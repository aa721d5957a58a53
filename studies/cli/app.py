"""The one application that commands register with, and how its help lists them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command_name, get_group

# Headings of `equisearch --help`, in their order; a command names its own as `rich_help_panel`.
SEARCH = "Search"
LOOK_PANEL = "Look at a study"
MODELS_PANEL = "Models and data"
SET_UP = "Set-up"
BENCHMARKS = "Benchmarks"
PANELS = (SEARCH, LOOK_PANEL, MODELS_PANEL, SET_UP, BENCHMARKS)
HELP_WIDTH = 100  # columns that help takes at most


class GroupedCommands(TyperGroup):
    """The commands under their headings, each with its whole sentence, wrapped to the terminal."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes one section per heading; typer's own list cuts sentences at the line's end."""
        sections: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or SET_UP
                sections[panel].append((name, " ".join((command.help or "").split())))
        widest = max(len(name) for rows in sections.values() for name, _ in rows)
        for panel, rows in sections.items():
            if rows:
                with formatter.section(panel):
                    formatter.write_dl([(name.ljust(widest), text) for name, text in rows])


app = typer.Typer(
    name="equisearch",
    cls=GroupedCommands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": HELP_WIDTH},
    help="Search for the right amount of equivariance. --debug with any command shows tracebacks.",
)


def application(words: Sequence[str]) -> TyperGroup:
    """The application that runs the command line `words`: with the command they begin with alone,
    or with all where they begin with none (help, a mistyped name).

    Typer builds a command from the annotations of its function; of all commands that is a seventh
    of what `equisearch front` calls.
    """
    chosen = copy.copy(app)
    chosen.registered_commands = [
        command
        for command in app.registered_commands
        if command.callback
        and words[:1] == [command.name or get_command_name(command.callback.__name__)]
    ] or app.registered_commands
    group = get_group(chosen)
    for command in group.commands.values():
        for option in command.params:
            if option.param_type_name == "option" and option.callback is None:
                option.callback = _not_blank
    return group


def _not_blank(context: Any, option: Any, value: Any) -> Any:
    """The value of an option. Raises BadParameter for a blank one, which would count as an option
    that was left out.
    """
    if isinstance(value, str) and not value.strip():
        raise typer.BadParameter("it is empty; give a value, or leave the option out")
    return value
