"""Epochs that searches need on the recorded tables, ours beside its rivals: python
tests/benchmarks/bench_search.py tests/assets/*_table.json.gz --save searches.json

Prints, for each table, the median and quartiles of the epochs until the front has 95 % of the full
hypervolume, how many seeds got there, and the two-sided Mann-Whitney test of ours against the rival
with the lowest median; then the same in work, epochs times MACs in epochs of the median
architecture, and in seconds of training, where the table has them (`bench_seconds.py` adds them).
What `--save` names is kept and not searched again. BoTorch's rows need `pip install
'equisearch[botorch]'`, and take most of the time: `--botorch-seeds`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from scipy.stats import mannwhitneyu

from studies.output import Column, Format, note, print_rows
from studies.replays.record import read_table
from studies.replays.replay import Method, Replayed, methods, replay

OURS = "ours"


def compared(all_parts: bool, table) -> list[tuple[Method, bool]]:
    """The methods, and whether each is BoTorch's."""
    chosen = [(m, False) for m in methods(table) if all_parts or not m.is_ours or m.name == OURS]
    if find_spec("botorch") is None:
        note("botorch is not installed: its rows are left out (pip install 'equisearch[botorch]')")
        return chosen
    from botorch_searches import BOTORCH  # beside this file

    rivals = [(Method(name, other=run), True) for name, run in BOTORCH.items()]
    return [*chosen, *rivals]


def searched(path: Path, options: argparse.Namespace) -> list[Replayed]:
    """What each method needs on one table, from the saved file where that has it."""
    table, rows = read_table(path), []
    for method, by_botorch in compared(options.parts, table):
        seeds = options.botorch_seeds if by_botorch else options.seeds
        if options.only and method.name not in options.only:
            continue
        saved = (
            json.loads(options.save.read_text()) if options.save and options.save.exists() else {}
        )
        name = f"{path.name} {method.name} {seeds}"
        if name not in saved:
            saved[name] = asdict(replay(table, method, seeds))
            note(f"{name}: {saved[name]['epochs']}")
            if options.save:
                options.save.write_text(json.dumps(saved, indent=0))
        kept = saved[name]
        numbers = tuple(kept["epochs"]), kept["reached"], tuple(kept["work"])
        seconds = tuple(kept.get("seconds", ()))  # not in files of earlier versions
        rows.append(Replayed(kept["name"], *numbers, kept["ours"], seconds))
    return rows


def printed(path: Path, rows: list[Replayed], format: Format) -> None:
    """One table's comparison, in epochs, in work and in seconds of training."""
    ours = next((row for row in rows if row.name == OURS), None)
    lines = []
    for what in ("epochs", "work", "seconds"):
        compared = [row for row in rows if getattr(row, what)]
        medians = {r.name: _quartiles(getattr(r, what))[1] for r in compared if not r.ours}
        best = min(medians, key=medians.__getitem__) if medians else None
        for row in compared:
            low, middle, high = _quartiles(getattr(row, what))
            p = None
            if ours in compared and row.name == best:
                p = mannwhitneyu(getattr(ours, what), getattr(row, what)).pvalue
            lines.append(
                {
                    "table": path.name.partition(".")[0],
                    "in": what,
                    "search": row.name,
                    "median": middle,
                    "low": low,
                    "high": high,
                    "of the best rival": middle / medians[best] if best else None,
                    "reached": f"{row.reached} of {len(row.epochs)}",
                    "p": p,
                }
            )
    columns = [
        *(Column(name) for name in ("table", "in", "search")),
        *(Column(name, True) for name in ("median", "quartiles", "of the best rival", "reached")),
        Column("p, ours against it", True),
    ]
    cells = [
        [
            line["table"],
            line["in"],
            line["search"],
            f"{line['median']:g}",
            f"{line['low']:.0f} to {line['high']:.0f}",
            "" if line["of the best rival"] is None else f"{line['of the best rival']:.2f}",
            line["reached"],
            "" if line["p"] is None else f"{line['p']:.2g}",
        ]
        for line in lines
    ]
    print_rows(lines, format, columns, cells)


def _quartiles(values) -> tuple[float, float, float]:
    row = Replayed("", tuple(values), 0)
    return row.quartiles[0], row.median, row.quartiles[1]


def main() -> None:
    """Searches every table and prints."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("tables", type=Path, nargs="+")
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--botorch-seeds", type=int, default=20)
    options.add_argument("--parts", action="store_true", help="ours without each of its parts, too")
    options.add_argument("--only", nargs="+", help="the names of the searches")
    options.add_argument("--save", type=Path)
    options.add_argument("--format", type=Format, default=Format.table)
    given = options.parse_args()
    for path in given.tables:
        printed(path, searched(path, given), given.format)


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
