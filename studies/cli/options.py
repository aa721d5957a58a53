"""Arguments and options that several commands share, and what they mean for a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studies.output import Format

if TYPE_CHECKING:
    from studies.journal.trial import TrialRecord


KNEE = "knee"  # names the best compromise of the front


def named_place(text: str) -> Path:
    """The directory or file of that name, with a leading `~` or `~user` replaced by the home folder
    as in study files. Raises BadParameter for no name, a remote store and an unknown user.
    """
    from studies.errors import StudyError
    from studies.journal.directory import require_place

    try:
        place = Path(text).expanduser()
        require_place(text)
    except StudyError as error:
        raise typer.BadParameter(str(error)) from None
    except RuntimeError:
        raise typer.BadParameter(
            f"{text} begins with the home folder of a user that this machine does not know; write "
            f"the path in full, or ./{text} for a name that begins with ~"
        ) from None
    return place


def group_named(text: str) -> str:
    """The name of a group. Raises BadParameter where it is none."""
    from searchspace.groups import Group

    try:
        return str(Group.parse(text.strip()))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def figure_named(text: str) -> Path:
    """The file of a figure. Raises BadParameter for a name that says no format."""
    from trainers.figures import check_name

    try:
        return check_name(named_place(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def objective_named(text: str) -> str:
    """The name of an objective. Raises BadParameter where it is none."""
    from studies.pareto import DIRECTIONS

    if text not in DIRECTIONS:
        raise typer.BadParameter(
            f"'{text}' does not name an objective; choose one of {', '.join(DIRECTIONS)}"
        )
    return text


def softness_named(text: str) -> float:
    """A softness. Raises BadParameter for what is not a number from 0 to 1."""
    try:
        softness = float(text)
    except ValueError:
        softness = math.nan
    if not 0 <= softness <= 1:
        raise typer.BadParameter(
            f"softness is {text}; it must be from 0 (the constraint) to 1 (the network as it was "
            "trained)"
        )
    return softness


def duration_named(text: str) -> float:
    """Seconds of a duration such as `90m`. Raises BadParameter where it is none."""
    from studies.durations import in_seconds

    try:
        return in_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Directory = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="The study's directory.", show_default=False, parser=named_place
    ),
]
PageFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        parser=named_place,
        help="The file to write; else DIR/report.html.",
        show_default=False,
    ),
]
StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="A study file, or the name of a preset.", show_default=False
    ),
]


def trial_named(text: str) -> int | str:
    """A trial's number, or which trial of the front."""
    from studies.pareto import DIRECTIONS

    if text.isascii() and text.isdigit():
        return int(text)
    if text != KNEE and text not in DIRECTIONS:
        raise typer.BadParameter(
            f"'{text}' is not a valid trial; give a number, {KNEE} (the front's best compromise), "
            f"or an objective in which a member of the front is best: {', '.join(DIRECTIONS)}"
        )
    return text


def number_of_trial(context: typer.Context, value: int | str | None) -> int | None:
    """The number of the trial that `knee` or an objective names in the study; None for none."""
    if not isinstance(value, str):
        return value
    from studies.evidence.selection import number_of
    from studies.results.tables import open_records

    place = Path(context.params.get("directory") or context.params["place"])
    study, records = open_records(place, reading=True)
    return number_of(study, records, value == KNEE, None if value == KNEE else value)


TrialNumber = Annotated[
    int,
    typer.Argument(
        metavar="TRIAL",
        help="The trial's number, knee (the front's best compromise), or an objective (the "
        "front's best in it).",
        show_default=False,
        parser=trial_named,
        callback=number_of_trial,
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How the result is printed.")]
Trials = Annotated[int | None, typer.Option(min=1, help="Trials in all.", show_default=False)]
Workers = Annotated[
    str | None,
    typer.Option(metavar="N|auto", help="Trials at the same time.", show_default=False),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="TIME",
        parser=duration_named,
        help="Stop after that long, such as 90m; `resume` continues.",
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="A Ray cluster; else Ray on this machine.", show_default=False
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Take over what in DIR runs programs (resources.runtime_env and others), whoever "
        "wrote it.",
    ),
]
AcceptData = Annotated[
    bool,
    typer.Option(
        "--accept-data",
        help="Go on although the data has changed: earlier trials leave the front, and new ones "
        "are compared among themselves.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any key of the study, such as search.sampler=random.",
        show_default=False,
    ),
]

Where = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITION",
        help="Only trials that meet it, such as 'params < 50k and exact'.",
        show_default=False,
    ),
]
Knee = Annotated[bool, typer.Option("--knee", help="Only the best compromise.")]
Best = Annotated[
    str | None,
    typer.Option(
        metavar="OBJECTIVE",
        parser=objective_named,
        help="Only the member of the front that is best in one objective.",
        show_default=False,
    ),
]

FrontFigure = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        parser=figure_named,
        help="Draws every two objectives: png, svg or pdf.",
        show_default=False,
    ),
]
GroupOfUse = Annotated[
    str | None,
    typer.Option(
        metavar="GROUP",
        parser=group_named,
        help="The group under which the model will be used; else the study's.",
        show_default=False,
    ),
]
OtherGroup = Annotated[
    str | None,
    typer.Option(
        metavar="GROUP",
        parser=group_named,
        help="The group, instead of the study's.",
        show_default=False,
    ),
]
Enqueue = Annotated[
    Path | None,
    typer.Option(
        parser=named_place,
        metavar="FILE",
        help="Architectures to try first, one a line.",
        show_default=False,
    ),
]
WarmStart = Annotated[
    Path | None,
    typer.Option(
        parser=named_place,
        metavar="DIR",
        help="An earlier study to learn from.",
        show_default=False,
    ),
]

RunCode = Annotated[
    bool,
    typer.Option(
        "--run-code",
        help="Execute the code in the bundle too; only for a bundle whose origin you trust.",
    ),
]


def pairs(settings: list[str] | None) -> dict[str, Any]:
    """Dotted keys and their values, from the --set options."""
    from studies.config import NULL
    from studies.yaml_loader import YamlError, read_yaml

    overrides: dict[str, Any] = {}
    for text in settings or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(
                f"'{text}' has no key and value; write KEY=VALUE, such as search.sampler=random",
                param_hint="--set",
            )
        try:
            parsed = read_yaml(value)
        except YamlError:
            raise typer.BadParameter(
                f"the value in '{text}' is not YAML; quote it as YAML does", param_hint="--set"
            ) from None
        overrides[key.strip()] = NULL if parsed is None else parsed
    return overrides


def resources(workers: str | None, timeout: float | None, address: str | None) -> dict[str, Any]:
    """Dotted keys and values of the options for workers, time and the cluster; None where an option
    was not given.
    """
    number = workers is not None and workers.isascii() and workers.isdigit() and int(workers) > 0
    if workers not in (None, "auto") and not number:
        raise typer.BadParameter(
            f"{workers} is neither auto nor a whole number above 0", param_hint="--workers"
        )
    count = int(workers) if workers and number else workers
    return {"resources.workers": count, "search.timeout": timeout, "resources.address": address}


def selected(records: Sequence[TrialRecord], where: str | None) -> list[TrialRecord]:
    """The trials that meet the condition of --where; all without one."""
    if where is None:
        return list(records)
    from studies.evidence.conditions import ConditionError
    from studies.evidence.selection import filtered

    try:
        return filtered(records, where)
    except ConditionError as error:
        raise typer.BadParameter(str(error), param_hint="--where") from None
