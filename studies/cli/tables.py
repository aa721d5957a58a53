"""Commands about searches themselves: `record` and `replay` compare them on recorded trainings,
`rederive` derives the proposals of one again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from searchspace.geometry import counted
from studies.cli.app import BENCHMARKS, LOOK_PANEL, app
from studies.cli.options import (
    Address,
    Directory,
    FormatOption,
    Overrides,
    StudyName,
    Workers,
    named_place,
    pairs,
    resources,
)
from studies.output import Format, note, print_json, print_rows
from trainers.files import as_word


@app.command(rich_help_panel=BENCHMARKS)
def record(
    study: StudyName,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            parser=named_place,
            help="The table, gzipped JSON; recording continues from it.",
            show_default=False,
        ),
    ],
    workers: Workers = None,
    ray_address: Address = None,
    settings: Overrides = None,
) -> None:
    """Trains every architecture of a finite space and records its scores after each epoch, for
    `replay`.
    """
    from studies import config
    from studies.replays import record as recording
    from studies.workers.executors import require_cluster
    from studies.workers.launch import read_dimensions

    chosen = config.load_study(study, {**resources(workers, None, ray_address), **pairs(settings)})
    recording.require_table_file(file)
    require_cluster(chosen.resources)
    channels, classes = read_dimensions(chosen, note)

    def on_entry(done: int, total: int, entry: recording.TableEntry) -> None:
        note(
            f"{done} of {total}: accuracy {100 * entry.epochs[-1][0]:.1f} %, symmetry accuracy "
            f"{100 * entry.epochs[-1][1]:.1f} %  {entry.architecture}"
        )

    table = recording.record(chosen, file, channels=channels, classes=classes, on_entry=on_entry)
    print(
        f"{file}: {counted(len(table.entries), 'architecture')}, "
        f"{counted(chosen.training.epochs, 'epoch')} each, "
        f"{file.stat().st_size:,} bytes"
    )


@app.command(rich_help_panel=BENCHMARKS)
def replay(
    file: Annotated[
        Path,
        typer.Argument(
            parser=named_place,
            metavar="FILE",
            help="A table that `record` wrote.",
            show_default=False,
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Searches of each kind.")] = 20,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of the full hypervolume.")] = 0.95,
    format: FormatOption = Format.table,
) -> None:
    """Searches a recorded table in several ways and prints the epochs each needs for a share of the
    full hypervolume.
    """
    from studies.replays import record as recording
    from studies.replays import replay as replaying

    table = recording.read_table(file)
    if len(table.entries) < table.total:
        note(
            f"{file} holds {len(table.entries)} of {table.total} architectures; those that are "
            f"missing have the worst scores and cost nothing (`equisearch record STUDY "
            f"{as_word(file)}` continues the recording)"
        )
    rows = []
    for method in replaying.methods(table):
        rows.append(replaying.replay(table, method, seeds, share=share))
        note(f"{rows[-1].name}: median {rows[-1].median:g} epochs")
    if format is Format.json:
        return print_json(replaying.summary(table, rows, seeds, share))
    if format is Format.table:
        print(
            f"{counted(len(table.entries), 'architecture')}, "
            f"{counted(table.study.training.epochs, 'epoch')} each; "
            f"epochs until the front has {100 * share:g} % of the full hypervolume, "
            f"{replaying.full_volume(table):.4f}; {counted(seeds, 'seed')}"
        )
    print_rows(replaying.as_dicts(rows), format, *replaying.comparison_table(rows, seeds))


@app.command(rich_help_panel=LOOK_PANEL)
def rederive(directory: Directory, format: FormatOption = Format.table) -> None:
    """Derives every proposal of a study again from its journal alone, and names the first that
    comes out otherwise.
    """
    from dataclasses import asdict

    from studies.search.rederive import rederive as derive

    done = derive(directory)
    if format is Format.json:
        print_json(asdict(done))
    else:
        for line in done.lines():
            print(line)
    if done.trial is not None or done.unrecorded:
        raise typer.Exit(1)
