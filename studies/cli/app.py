"""The one application that commands register with."""

import typer

app = typer.Typer(
    name="equisearch",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Search for the right amount of equivariance. --debug with any command shows tracebacks.",
)
