"""A study that costs nothing: scores are made from the architecture's text, epochs take as long as
told.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path

from studies.config import Study, parse
from studies.journal.reader import read_trials

TEXT = """
data: {name: digits}
training: {epochs: 9}
symmetry: {group: C4}
space:
  family: [steerable, plain]
  group: [C2, C4, D4]
  input_size: {low: 25, high: 33}
  layout: [max2/2, max3/2, avg3/2p1]
  equivariance_loss: {kind: [none, layerwise], weight: {low: 0.01, high: 10, log: true}}
objectives: [accuracy, symmetry_accuracy]
search: {sampler: random, trials: 12, rungs: [1, 3], eta: 3, seed: 0}
resources: {workers: 2}
"""


def study(**overrides) -> Study:
    """The trivial study; `search__trials=5` sets search.trials."""
    return parse(
        TEXT, overrides={key.replace("__", "."): value for key, value in overrides.items()}
    )


def scores(architecture: str, epoch: int) -> dict:
    """Scores that depend on the text alone, and grow with the epoch."""
    digest = hashlib.sha256(architecture.encode()).digest()
    return {
        "epoch": epoch,
        "accuracy": digest[0] / 256 * (1 - 0.5**epoch),
        "symmetry_accuracy": digest[1] / 256 * (1 - 0.7**epoch),
    }


def trainable(study, assignment, report) -> None:
    """Trains nothing, as carefully as a real worker: each epoch is noted when it begins, saved, and
    then reported.

    What is trained already is reported again at its rungs: the journal may know less than the
    checkpoint.
    """
    folder = Path(assignment.directory)
    (folder / "pid").write_text(str(os.getpid()))
    saved = folder / "checkpoint"
    done = json.loads(saved.read_text())["epoch"] if saved.exists() else assignment.inherited_epoch
    rungs = study.rungs if assignment.inherited_from is None else study.rungs[-1:]
    for epoch in range(1, assignment.until_epoch + 1):
        if epoch > done:
            with (folder / "epochs.txt").open("a") as file:
                file.write(f"{epoch}\n")
            time.sleep(float(os.environ.get("EPOCH_SECONDS", 0)))
            part = folder / "checkpoint.part"
            part.write_text(json.dumps({"epoch": epoch}))
            os.replace(part, saved)
            if study.search.inherit:
                (folder / "checkpoint.pt").touch()
            report.heartbeat(epoch)
        if epoch in rungs and report(scores(assignment.architecture, epoch)) == "stop":
            return


def ended(directory) -> dict[int, tuple]:
    """What a study came to, by trial number: state, values, architecture and rungs."""
    return {r.number: (r.state, r.values, r.architecture, r.rungs) for r in read_trials(directory)}


def audit(directory, trials: int) -> Counter:
    """The count after faults: trials by state, and `lost`, `doubled`, `zombies`, and `repeated`
    epochs of work.

    A trial that continues a stopped one is that one's training, hence not doubled; its folder
    begins as a copy.
    """
    records = [r for r in read_trials(directory) if r.state != "refused"]
    count = Counter(r.state for r in records)
    count["lost"] = max(
        0, trials - sum(r.state in ("complete", "pruned", "failed") for r in records)
    )
    trainings = [r for r in records if "continues" not in r.attributes]
    count["doubled"] = len(trainings) - len(
        {(r.architecture, r.attributes.get("seed")) for r in trainings}
    )
    continuing = Counter(r.attributes["continues"] for r in records if "continues" in r.attributes)
    count["doubled"] += sum(times - 1 for times in continuing.values())
    count["zombies"] = count["running"] + count["waiting"]
    for record in records:
        epochs = _epochs(directory, record.number)
        count["repeated"] += len(epochs) - len(set(epochs))
        if "continues" in record.attributes:  # what was repeated before the copy
            before = _epochs(directory, record.attributes["continues"])
            count["repeated"] -= len(before) - len(set(before))
        if record.state == "complete":
            assert sorted(set(map(int, epochs))) == list(range(1, 10)), record
    return count


def _epochs(directory, number: int) -> list[str]:
    return (Path(directory) / "trials" / f"{number:05d}" / "epochs.txt").read_text().split()
