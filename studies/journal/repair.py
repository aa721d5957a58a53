"""`equisearch repair`: puts a damaged study directory back into a state that `resume` takes, and
says what it did.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.geometry import counted
from searchspace.recipe import Candidate
from studies.config import Study, dump
from studies.errors import StudyError
from studies.journal.directory import (
    DATA,
    STUDY,
    VERSIONS,
    read_enqueued,
    read_published,
    read_study,
)
from studies.journal.folders import (
    TRIALS,
    TrialFolder,
    move_aside,
    read_folders,
    set_aside_not_files,
)
from studies.journal.lock import LOCK, StudyLock
from studies.journal.reader import JOURNAL, read_trials
from studies.journal.rebuild import (
    DescribeTrial,
    complete_trial,
    new_trial,
    study_entries,
    trials_of,
    untried,
)
from studies.journal.records import Entry
from studies.journal.salvage import salvage
from studies.journal.trial import ENDED
from studies.yaml_loader import YamlError, read_yaml
from trainers.files import (
    as_word,
    damaged_name,
    partial_files,
    read_whole,
    set_aside_odd,
    write_whole,
)

Describe = Callable[..., dict[str, Any]]  # `studies.search.proposals.describe_text`
ReadDimensions = Callable[[Study], tuple[int, int]]  # (channels, classes) of the study's images
MOST_REFUSED = 1000  # trials in a row without a folder: refused ones have none
MOST_DAMAGE = 5  # sentences about damaged lines that are shown
# of a study's images, that costs are compared with
CHANNELS, CLASSES = (1, 2, 3, 4), range(2, 1001)


def repair(
    directory: Path, describe: Describe | None = None, look: ReadDimensions | None = None
) -> list[str]:
    """What was done, one line each; empty if nothing was wrong.

    Every whole record of the journal is kept (a copy of the damaged journal stays beside it); what
    it lost of a trial is rebuilt from the trial's folder; folders that are not those of the
    journal's trials are moved to `orphaned/`; leftovers are removed. `describe` says what a journal
    holds of an architecture: without it, trials that the journal lost wholly are not rebuilt.
    `look` reads the images, where nothing else tells how many channels and classes they have.
    Raises LockedError if another process drives the study, StudyError if there is none.
    """
    aside = _move_odd_files(directory)
    back = aside + _write_back(directory)
    study = read_study(directory)
    lock = StudyLock(directory)
    try:
        done = back + _mend_journal(directory, study, describe, look)
        for path in (directory / TRIALS).glob("*"):
            done += [
                f"what was in the place of a file is now {TRIALS}/{path.name}/{name}"
                for name in (set_aside_not_files(path) if path.is_dir() else ())
            ]
        return [*done, *_move_orphans(directory), *_remove_leftovers(directory)]
    finally:
        lock.close()


def _move_odd_files(directory: Path) -> list[str]:
    """Moves aside what stands in the place of a file of the study and is a folder, a pipe or the
    like: what cannot be read is rebuilt, as where it is lost.
    """
    there = directory / STUDY
    if not (os.path.lexists(there) or (directory / JOURNAL).exists()):
        return []  # no study
    moved = set_aside_odd(directory, (LOCK, JOURNAL, VERSIONS, DATA))
    if os.path.lexists(there := directory / TRIALS) and not there.is_dir():
        os.rename(there, place := damaged_name(there))
        moved.append(place)
    return [f"what was in the place of a file or folder is now {place.name}" for place in moved]


def _write_back(directory: Path) -> list[str]:
    """Writes a study file that is lost, empty or no YAML as the journal holds it; of a file that is
    not whole a copy stays. Raises LockedError if another process drives the study.
    """
    path = directory / STUDY
    try:
        read_yaml(content := read_whole(path).decode())
        if content.strip("\ufeff\0 \n"):
            return []
    except PermissionError:
        raise  # what may not be read is not damaged
    except (OSError, UnicodeDecodeError, YamlError):
        pass
    study = _started(directory / JOURNAL)
    if study is None:
        return []  # `read_study` says what is wrong
    lock = StudyLock(directory)
    try:
        kept = []
        if os.path.lexists(path):
            place = damaged_name(path)
            os.rename(path, place)
            kept = [f"what was in its place is in {place.name}"]
        write_whole(path, dump(study))
    finally:
        lock.close()
    return [f"{STUDY} is written back as the journal holds it", *kept]


def _started(journal: Path) -> Study | None:
    """The study as the records say it was started; None where they do not say it."""
    try:
        stored = _given(list(salvage(read_whole(journal)).entries)).get("study")
        return Study.model_validate(stored, context={"reading": True}) if stored else None
    except (OSError, ValueError):
        return None


def _mend_journal(
    directory: Path, study: Study, describe: Describe | None, look: ReadDimensions | None
) -> list[str]:
    path = directory / JOURNAL
    content = read_whole(path) if path.exists() else b""
    saved = salvage(content)
    entries, done = list(saved.entries), list(saved.damage[:MOST_DAMAGE])
    if len(saved.damage) > MOST_DAMAGE:
        done.append(f"{len(saved.damage) - MOST_DAMAGE} more places are damaged")
    folders = read_folders(directory)
    if not entries and not folders:
        return [*done, f"there is no {JOURNAL} and no trial: the study was never started"]
    before = sum(trial.ended is not None for trial in trials_of(entries))
    lost_beginning = not any(entry["op_code"] == 0 for entry in entries)
    done += _begin(directory, entries, study, folders, look)
    describer = _for_study(describe, study, entries)
    done += _rebuild(entries, study, folders, describer)
    first = (*read_enqueued(directory), *study.search.first)
    if lost_beginning and describer is not None and (waiting := untried(entries, first)):
        entries += waiting
        done.append(
            f"{counted(len(waiting), 'architecture')} of --enqueue and search.first, not tried "
            "before: waiting again"
        )
    if not saved.damage and entries == list(saved.entries):
        return done
    done += _replace(path, content, entries)
    after = Counter(record.state for record in read_trials(directory))
    return [
        *done,
        f"trials that had ended: {before} in whole records of the journal, "
        f"{sum(after[state] for state in ENDED)} now "
        f"({', '.join(f'{after[state]} {state}' for state in sorted(after))})",
    ]


def _for_study(
    describe: Describe | None, study: Study, entries: list[Entry]
) -> DescribeTrial | None:
    """`describe` for the images of this study; None where those are not known."""
    given = _given(entries)
    if describe is None or not {"channels", "classes"} <= set(given):
        return None
    return partial(describe, study=study, channels=given["channels"], classes=given["classes"])


def _given(entries: list[Entry]) -> dict[str, Any]:
    """The study's attributes."""
    given: dict[str, Any] = {}
    for entry in entries:
        if entry["op_code"] == 2:
            given.update(entry["user_attr"])
    return given


def _begin(
    directory: Path,
    entries: list[Entry],
    study: Study,
    folders: dict[int, TrialFolder],
    look: ReadDimensions | None,
) -> list[str]:
    """Puts the study's own records at the beginning if they are lost."""
    given = _given(entries)
    there = any(entry["op_code"] == 0 for entry in entries)
    if there and {"channels", "classes"} <= set(given):
        if entries[0]["op_code"] == 0:
            return []
        entries.sort(
            key=lambda entry: (0, 2).index(code) if (code := entry["op_code"]) in (0, 2) else 2
        )
        return ["what the journal says of the study stood behind trials; it is the beginning again"]
    given = {**(read_published(directory) or _data_facts(entries, folders)), **given}
    unknown = []
    if not {"channels", "classes"} <= set(given):
        found, unknown = _look_at_images(directory, study, look)
        given = {**found, **given}
    if there and unknown:
        return unknown
    trial_entries = [entry for entry in entries if entry["op_code"] not in (0, 2)]
    entries[:] = [*study_entries(study, given), *trial_entries]
    return unknown or ["the journal lost what it said of the study; it is rebuilt"]


def _look_at_images(
    directory: Path, study: Study, look: ReadDimensions | None
) -> tuple[dict[str, int], list[str]]:
    """(channels and classes of the study's images, what to do where they cannot be read)."""
    try:
        if look is not None:
            channels, classes = look(study)
            return {"channels": channels, "classes": classes}, []
        reason = "the images were not read"
    except (StudyError, ValueError, OSError) as error:
        reason = str(error)
    return {}, [
        "the journal lost how many channels and classes the images have, and the study's data does "
        f"not tell ({reason}): put the data back, then `equisearch repair {as_word(directory)}`"
    ]


def _data_facts(entries: list[Entry], folders: dict[int, TrialFolder]) -> dict[str, int]:
    """channels and classes, from what trained architectures cost; empty if that does not tell."""
    attributes = [trial.attributes for trial in trials_of(entries)]
    attributes += [
        {**row, **folder.given} for folder in folders.values() for row in folder.scores.values()
    ]
    fitting: set[tuple[int, int]] | None = None
    for known in attributes:
        if not {"architecture", "params", "macs"} <= set(known):
            continue
        try:
            sizes = _fitting(Candidate.parse(known["architecture"]).architecture, known)
        except ValueError:
            continue
        fitting = sizes if fitting is None else fitting & sizes
        if len(fitting) == 1:
            break
    if fitting is None or len(fitting) != 1:
        return {}
    ((channels, classes),) = fitting
    return {"channels": channels, "classes": classes}


def _fitting(architecture: Architecture, known: dict[str, Any]) -> set[tuple[int, int]]:
    """(channels, classes) at which the architecture costs what is known."""
    images = set()
    for channels in CHANNELS:
        one, two = (cost(architecture, channels, classes).params for classes in (1, 2))
        classes, rest = divmod(known["params"] - one, two - one)
        macs = cost(architecture, channels, classes + 1).macs
        if rest == 0 and classes + 1 in CLASSES and macs == known["macs"]:
            images.add((channels, classes + 1))
    return images


def _rebuild(
    entries: list[Entry],
    study: Study,
    folders: dict[int, TrialFolder],
    describe: DescribeTrial | None,
) -> list[str]:
    """Adds to the records what folders say and the journal lost; returns what was done."""
    trials = trials_of(entries)
    filled, inserted = 0, []
    for number, trial in enumerate(trials):
        folder = folders.get(number)
        if folder is None or (trial.proposed and not folder.belongs_to(trial.attributes)):
            continue
        if not trial.proposed and not _may_be(folder, trial.attributes):
            continue
        try:
            records, _ = complete_trial(number, trial, folder, study, describe)
        except ValueError:
            continue  # its architecture cannot be built
        if records:
            filled += 1
            inserted.append((len(entries) if trial.ended is None else trial.ended, records))
    for place, records in sorted(inserted, key=lambda item: item[0], reverse=True):
        entries[place:place] = records
    done = [f"rebuilt parts of {counted(filled, 'trial')} from folders of trials"] if filled else []
    rebuilt = []
    for number in range(len(trials), _lost_end(len(trials), folders)) if describe else ():
        try:
            entry, _ = new_trial(folders.get(number), study, describe)
        except ValueError:
            entry, _ = new_trial(None, study, describe)
        entries.append(entry)
        rebuilt += [number] if "architecture" in entry["user_attrs"] else []
    if rebuilt:
        done.append(
            f"rebuilt {counted(len(rebuilt), 'trial')} that the journal had lost "
            f"({rebuilt[0]} to {rebuilt[-1]}) from folders of trials"
        )
    return done


def _lost_end(known: int, folders: dict[int, TrialFolder]) -> int:
    """One more than the number of the last trial that the journal lost, as folders tell; empty ones
    and those far from all others are of no trial.
    """
    end = known
    for number, folder in sorted(folders.items()):
        if end <= number < end + MOST_REFUSED and (folder.given or folder.scores):
            end = number + 1
    return end


def _may_be(folder: TrialFolder, attributes: dict[str, Any]) -> bool:
    """Whether the folder can be that of a trial of which the journal says only that it waits."""
    return attributes.get("enqueued") in (None, folder.architecture)


def _replace(path: Path, content: bytes, entries: list[Entry]) -> list[str]:
    """Writes the journal anew, with a copy of what it was beside it."""
    done = []
    if content:
        copy = damaged_name(path)
        write_whole(copy, content)
        done = [f"a copy of the journal as it was is in {copy.name}"]
    write_whole(path, "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries))
    return done


def _move_orphans(directory: Path) -> list[str]:
    """Moves the folders aside that are not those of the journal's trials."""
    if not (directory / JOURNAL).exists():
        return []
    records = read_trials(directory)
    moved = []
    for number, folder in read_folders(directory).items():
        attributes = records[number].attributes if number < len(records) else {}
        absent = number >= len(records) or attributes.get("refused")
        if absent or (folder.architecture and not folder.belongs_to(attributes)):
            place = move_aside(folder.path)
            moved.append(f"{folder.path.name} -> {place.relative_to(directory)}")
    if not moved:
        return []
    return [
        f"moved {counted(len(moved), 'folder')} aside, of no trial of the journal: "
        f"{', '.join(moved)}"
    ]


def _remove_leftovers(directory: Path) -> list[str]:
    done = []
    folders = [directory, *(path for path in (directory / TRIALS).glob("*") if path.is_dir())]
    unfinished = [path for folder in folders for path in partial_files(folder)]
    before = (directory / TRIALS).glob("*/*.new")  # as earlier versions named them
    for path in [*directory.glob(f"{JOURNAL}.lock*"), *unfinished, *before]:
        path.unlink(missing_ok=True)
        done.append(f"removed the leftover {path.relative_to(directory)}")
    return done
