"""The page about a study: it says what the commands say, holds everything it shows, and is written
even when little is there.
"""

import json
import re
import shutil
from dataclasses import replace
from random import Random

import pytest

from searchspace.recipe import Candidate
from studies.errors import StudyError
from studies.evidence.intervals import Evidence
from studies.journal.trial import TrialRecord
from studies.markup import html, joined_html
from studies.pareto import knee
from studies.results import tables as views
from studies.results.report import answer as answering
from studies.results.report import write_report
from studies.results.report.importance import importances
from studies.results.report.sections import FACETS, growth, natural
from studies.results.retrain import MeanStd
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial


def fails_at_times(study, assignment, report):
    if assignment.number in (2, 5):
        raise RuntimeError("the <weights> & more")
    trivial.trainable(study, assignment, report)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report") / "cells"
    with SearchDriver.create(directory, trivial.study(search__trials=14)) as driver:
        run_in_process(driver, fails_at_times)
    return directory


def text_of(page):
    shown = re.sub(r"<(svg|script|style|template).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", " ", shown)


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_says_what_the_commands_say_and_refers_to_nothing(study):
    path = write_report(study)
    page, opened = path.read_text(encoding="utf-8"), views.open_records(study)
    assert path == study / "report.html"
    text = text_of(page)
    for record in views.front_members(*opened):
        assert record.architecture in text
    assert views.status_lines(views.status(study))[1] in text
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)[^\"']*", page)
    assert "the &lt;weights&gt; &amp; more" in page and "<weights>" not in page


def test_scores_are_compared_over_all_complete_trials(study):
    page = write_report(study).read_text(encoding="utf-8")
    complete = [r for r in views.open_records(study)[1] if r.state == "complete"]
    for section in re.findall(r"<h3>By .*?</table>", page, flags=re.DOTALL):
        rows = section.split("<tr>")[2:]
        counts = [int(row.split("<td class=right>")[1].split("<")[0]) for row in rows]
        assert sum(counts) == len(complete) and len(counts) > 1
        exact = sum(int(row.rsplit("<td class=right>", 1)[1].split("<")[0]) for row in rows)
        assert exact == sum(record.attributes["exact"] for record in complete) > 0
    assert "<h3>By group of the stages</h3>" in page
    facet = FACETS["equivariance loss"]
    assert facet(Candidate.parse("12px: 4k3@C4 loss=layerwise:0.1+latent:1")) == "layerwise+latent"
    assert facet(Candidate.parse("12px: 4k3@C4")) == "none"
    assert FACETS["group of the stages"](Candidate.parse("12px: 4k3@D4, 4k3, 4k3@C2")) == "D4 to C2"


def test_the_front_grows_to_its_hypervolume(study):
    opened = views.open_records(study)
    volumes = growth(*opened)
    assert (
        volumes == sorted(volumes)
        and volumes[-1] == pytest.approx(views.status(study)["hypervolume"])
        and volumes[0] < volumes[-1]
    )
    assert len(volumes) == sum(r.order is not None for r in opened[1])


def test_the_front_has_no_volume_before_its_first_member():
    study = trivial.study()
    failed = TrialRecord(0, "failed", None, {}, order=0)
    complete = TrialRecord(1, "complete", (0.5, 0.5), {}, order=1)
    volumes = growth(study, [complete, failed])
    assert volumes[0] == 0 < volumes[1] < 1


def test_test_scores_of_what_was_retrained_are_shown_with_n_and_spread(study):
    for seed, accuracy in ((1, 0.9), (2, 0.8)):
        folder = study / "retrained" / "00003" / f"epochs9-seed{seed}"
        folder.mkdir(parents=True)
        test = {
            "accuracy": accuracy,
            "symmetry_accuracy": 0.5,
            "symmetry_accuracy_worst": 0.4,
            "equivariance_error": 0.1,
            "params": 1,
            "macs": 2,
        }
        (folder / "result.json").write_text(
            json.dumps(
                {
                    "name": "trial 3",
                    "architecture": "12px: 4k3@C4",
                    "seed": seed,
                    "epochs": 9,
                    "num_test": 77,
                    "test": test,
                    "quarter_turns": {"0": 0.9, "90": 0.5, "180": 0.5, "270": 0.5},
                    "accuracy_by_angle": {"0": 0.9, "90": 0.5},
                }
            )
        )
    text = text_of(write_report(study).read_text(encoding="utf-8"))
    assert (
        "Test scores after 9 epochs" in text and "85.00 ± 7.07" in text and "77 test images" in text
    )


EVIL = "</pre><script>x</script><b a='\"'>&amp;\x1b"


def retrained(directory, **changes):
    folder = directory / "retrained" / "00003" / "epochs9-seed1"
    folder.mkdir(parents=True, exist_ok=True)
    test = {
        "accuracy": 0.5,
        "symmetry_accuracy": 0.5,
        "symmetry_accuracy_worst": 0.4,
        "equivariance_error": 0.1,
        "params": 1,
        "macs": 2,
    }
    result = {
        "name": "trial 3",
        "architecture": "12px: 4k3@C4",
        "seed": 1,
        "epochs": 9,
        "num_test": 77,
        "test": test,
        "quarter_turns": {"0": 0.9, "90": 0.5, "180": 0.5, "270": 0.5},
        "accuracy_by_angle": {"0": 0.9, "90": 0.5},
    }
    (folder / "result.json").write_text(
        json.dumps({**result, **changes, "test": {**test, **changes.get("test", {})}})
    )


@pytest.fixture
def hostile(study, tmp_path):
    """A copy of the study with markup in its name, and in every text of its trials' attributes that
    can be shown.
    """
    directory = tmp_path / "<script>x"
    shutil.copytree(study, directory)
    shutil.rmtree(directory / "retrained", ignore_errors=True)
    journal, lines = directory / "optuna.journal", []
    for line in map(json.loads, (directory / "optuna.journal").read_text().splitlines()):
        for name, value in line.get("user_attr", {}).items():
            if name in ("reason", "role", "enqueued"):
                line["user_attr"][name] = EVIL
            if name == "surviving":
                line["user_attr"][name] = [EVIL]
            if name.startswith("rung "):
                value["scores"].update(unseen_symmetry_accuracy=EVIL, params=EVIL)
        lines.append(json.dumps(line, separators=(",", ":")))
    journal.write_text("\n".join(lines) + "\n")
    (directory / "versions.json").write_text(json.dumps({"torch": EVIL}))
    return directory


@pytest.mark.parametrize(
    "changes",
    [
        {"num_test": EVIL},
        {"name": EVIL},
        {"architecture": EVIL},
        {"seed": EVIL},
        {"test": {"params": EVIL, "macs": EVIL}},
    ],
)
def test_no_value_of_a_study_becomes_markup(hostile, changes):
    retrained(hostile, **changes)
    page = write_report(hostile).read_text(encoding="utf-8")
    assert (
        page.count("<script") == 2  # the page's own
        and "<script>x" not in page
        and "<b a" not in page
        and "\x1b" not in page
        and page.count("&lt;script&gt;x") > 3
    )
    for tag in ("pre", "table", "details", "h2", "p", "td"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": EVIL},
        {"test": {"accuracy": EVIL}},
        {"quarter_turns": {"0": EVIL}},
        {"accuracy_by_angle": EVIL},
        {"name": [1]},
    ],
)
def test_a_result_whose_numbers_are_none_is_named(hostile, changes):
    retrained(hostile, **changes)
    with pytest.raises(StudyError, match="result.json holds no result of a training .*; delete it"):
        write_report(hostile)


def test_what_is_no_html_is_escaped_wherever_it_is_put():
    inner = html("<i>{}</i>", EVIL)
    page = html("<p>{}{}</p>", inner, joined_html([inner, EVIL, 3], "<br>"))
    assert (
        "<script" not in page
        and page.count("<i>") == 2
        and page.count("&lt;script&gt;") == 3
        and page.endswith("<br>3</p>")
    )


def test_a_study_without_a_result_has_a_page_too(tmp_path):
    with SearchDriver.create(tmp_path / "study", trivial.study()):
        pass
    assert "No trial is complete yet." in write_report(
        tmp_path / "study", tmp_path / "deep" / "deeper" / "page.html"
    ).read_text(encoding="utf-8")


def test_what_cannot_be_written_or_read_is_said(tmp_path, study):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StudyError, match="the page cannot be written to .*give another place with --out"
    ):
        write_report(study, tmp_path / "file" / "page.html")
    with pytest.raises(StudyError, match="holds no study"):
        write_report(tmp_path)


def test_values_are_sorted_as_people_do():
    assert sorted(["C16", "D4", "C4", "C1"], key=natural) == ["C1", "C4", "C16", "D4"]
    assert sorted(["100 px", "28 px", "9 px"], key=natural) == ["9 px", "28 px", "100 px"]


def test_the_best_compromise_is_the_marked_row(study):
    opened, records = views.open_records(study)
    rows, _, cells = views.front_rows(opened, records)
    front = views.front_members(opened, records)
    best = front[knee([record.values for record in front], opened.objectives)]
    # not the first one, which would be marked without looking
    assert best is not front[0]
    assert [row["trial"] for row in rows if row["knee"]] == [best.number]
    assert [cell[0] for cell in cells if cell[0].startswith("*")] == [f"*{best.number}"]


def test_the_means_of_a_facet_are_those_of_its_trials(study):
    page = write_report(study).read_text(encoding="utf-8")
    complete = [r for r in views.open_records(study)[1] if r.state == "complete"]
    by_size: dict[str, list] = {}
    for record in complete:
        name = FACETS["input size"](Candidate.parse(record.architecture))
        by_size.setdefault(name, []).append(record.scores)
    section = re.search(r"<h3>By input size</h3>.*?</table>", page, re.DOTALL)[0]
    for name, scores in by_size.items():
        row = next(row for row in section.split("<tr>") if row.startswith(f"<td>{name}<"))
        cells = re.findall(r"<td class=right>([^<]*)</td>", row)
        assert cells[0] == str(len(scores))
        assert cells[1] == MeanStd.of([s["accuracy"] for s in scores]).percent()
        assert cells[2] == MeanStd.of([s["symmetry_accuracy"] for s in scores]).percent()
        assert cells[3] == f"{100 * max(s['symmetry_accuracy'] for s in scores):.2f}"


def test_the_answer_stands_first_and_is_that_of_the_marked_row(study):
    page = write_report(study).read_text(encoding="utf-8")
    rows, _, _ = views.front_rows(*views.open_records(study))
    best = next(row for row in rows if row["knee"])
    text = " ".join(text_of(page).split())
    headline = re.search(r"(Use|Not settled; the best guess is) .*? complete trials", text)[0]
    assert text.index(headline) < text.index("Front")
    assert f"trial {best['trial']} is the best compromise" in headline
    share = best["scores"]["accuracy"]
    assert f"it classifies {100 * share:.1f} %" in text


def control(trial, name, outcome, value=0.0):
    gap = {"low": value - 0.01, "value": value, "high": value + 0.01}
    found = {"trial": trial, "control": name, "outcome": outcome}
    return {**found, "differences": {"accuracy": gap}}


RIVALS = {
    "better": (
        False,
        r"Not settled; the best guess is .*, but plain, .* is better \(95 % on",
    ),
    "tied": (False, r"Not settled; .*, but its scores cannot be told from those of plain"),
    "beaten": (True, r"Use [^;]*$"),
}


@pytest.mark.parametrize("what", RIVALS)
def test_the_headline_claims_no_more_than_the_controls_show(monkeypatch, what):
    settled, says = RIVALS[what]
    rows = [control(9, "plain, equal parameters", what)]
    monkeypatch.setattr(answering, "comparison", lambda *_: {"controls": rows})
    monkeypatch.setattr(answering, "scored", lambda records: [])
    found = answering._standing(
        trivial.study(), TrialRecord(0, "complete"), [], Evidence(images=84)
    )
    verb = "Use it" if found[0] else "Not settled; the best guess is it"
    assert found[0] == settled and re.match(says, verb + found[1])


def test_a_constraint_is_not_called_needed_while_a_network_without_any_is_level(monkeypatch):
    plain, augmented = "28px: 20k3, 20k4p0", "28px: 20k3, 20k4p0 augment=group"
    for text, needed in ((plain, False), (augmented, True)):
        rows = [
            control(6, "wrong group C8", "beaten", 0.1),
            {**control(7, "plain", "tied"), "architecture": text},
        ]
        monkeypatch.setattr(answering, "comparison", lambda *_, rows=rows: {"controls": rows})
        monkeypatch.setattr(answering, "scored", lambda records: [])
        settled, _ = answering._standing(
            trivial.study(), TrialRecord(0, "complete"), [], Evidence(images=84)
        )
        assert settled == needed
    assert "plain networks without any symmetry" in answering._named(["a", "b", "c"], 7, free=True)


def test_many_rivals_are_counted_not_named():
    assert answering._named(["a", "b"], 5) == "a and b"
    assert answering._named(["a", "b", "c"], 3).startswith("any of its 3 rivals")
    assert answering._named(["a", "b", "c"], 7).startswith("3 of its 7 rivals")


def test_the_headline_says_what_upright_images_cost_and_what_is_tied(monkeypatch):
    rows = [
        control(7, "plain, equal parameters", "trade-off", -0.05),
        control(8, "plain, equal MACs", "trade-off", -0.2),
        control(6, "wrong group C8", "beaten", 0.1),
        control(9, "plain, averaged over D4", "tied", 0.0),
    ]
    monkeypatch.setattr(answering, "comparison", lambda *_: {"controls": rows})
    monkeypatch.setattr(answering, "scored", lambda records: [])
    settled, text = answering._standing(
        trivial.study(), TrialRecord(0, "complete"), [], Evidence(images=84)
    )
    assert settled and text == (
        "; images as they are it classifies 20.0 points [19.0, 21.0] worse than plain, equal MACs "
        "(trial 8); its scores cannot be told from those of plain, averaged over D4 (trial 9) "
        "(95 % on 84 images)"
    )


def test_the_answer_says_which_corners_turned_images_have(study, tmp_path):
    directory = tmp_path / "corners"
    shutil.copytree(study, directory)
    text = (directory / "study.yaml").read_text()
    sentence = "turned by angles between quarter turns have corners filled with the image mirrored"
    for group, said in (("C8", True), ("D4", False)):
        changed = re.sub(r"corners: \w+", "corners: reflect", text)
        changed = re.sub(r"(symmetry:\n  group: )\w+", rf"\g<1>{group}", changed)
        (directory / "study.yaml").write_text(changed)
        page = " ".join(text_of(write_report(directory).read_text(encoding="utf-8")).split())
        assert (sentence in page) == said


def test_what_was_tested_replaces_the_warning_that_validation_flatters(study, tmp_path):
    directory = tmp_path / "tested"
    shutil.copytree(study, directory)
    shutil.rmtree(directory / "retrained", ignore_errors=True)
    assert "flatter the chosen" in text_of(write_report(directory).read_text(encoding="utf-8"))
    rows, _, _ = views.front_rows(*views.open_records(directory))
    best = next(row["trial"] for row in rows if row["knee"])
    retrained(directory, name=f"trial {best}", accuracy_by_angle={"0": 0.9, "45": 0.25})
    page = write_report(directory).read_text(encoding="utf-8")
    text = " ".join(text_of(page).split())
    assert "flatter the chosen" not in text and "with 1 seed, it reaches 50.00 % [" in text
    assert "test images (95 % intervals over images)." in text
    trial = next(t for t in data_of(page)["trials"] if t["n"] == best)
    assert trial["angles"] == [[0.0, 90.0], [45.0, 25.0]]


def test_the_plot_holds_every_complete_trial_with_its_scores(study):
    page = write_report(study).read_text(encoding="utf-8")
    opened, records = views.open_records(study)
    data, complete = data_of(page), [r for r in records if r.state == "complete"]
    assert {t["n"] for t in data["trials"]} == {r.number for r in complete}
    titles = [axis["title"] for axis in data["axes"]]
    for trial in data["trials"]:
        record = records[trial["n"]]
        shown = trial["v"][titles.index("accuracy, %")]
        assert shown == pytest.approx(100 * record.scores["accuracy"], abs=1e-3)
        assert trial["exact"] == bool(record.attributes["exact"])
        assert trial["i"][titles.index("parameters")] is None
        assert not trial["tied"] or (trial["front"] and not trial["knee"])
        assert [p[0] for p in trial["curves"][0]["points"]] == list(record.rungs)
    front = {record.number for record in views.front_members(opened, records)}
    assert {t["n"] for t in data["trials"] if t["front"]} == front
    assert [t["n"] for t in data["trials"] if t["knee"]] == [data["recommended"]]


def test_importance_finds_the_dimension_that_decides_and_is_silent_about_noise():
    random = Random(0)
    objectives = trivial.study().objectives

    def trials(score):
        return [
            TrialRecord(
                number,
                "complete",
                (score(group, rate), random.random()),
                {"architecture": "12px: 4k3"},
                parameters={"group": group, "learning_rate": rate, "constant": 1},
            )
            for number, (group, rate) in enumerate(
                (random.choice(["C1", "C4", "D4"]), random.random()) for _ in range(60)
            )
        ]

    decided, noise = importances(trivial.study(), trials(lambda g, _: {"C1": 0.1}.get(g, 0.9)))
    assert decided.objective == objectives[0] and decided.explained > 0.8
    assert decided.shares["group"] > 0.9 and "constant" not in decided.shares
    assert noise.shares == {} and noise.explained < 0.1
    assert importances(trivial.study(), trials(lambda g, _: 1.0)[:19]) == []


def test_a_thousand_trials_fit_five_megabytes(study, monkeypatch):
    opened, records = views.open_records(study, parameters=True)
    front = views.front_members(opened, records)
    other = next(r for r in records if r.state == "complete" and r not in front)
    many = [*front, *(replace(other, number=1000 + n, parameters={}) for n in range(1000))]
    monkeypatch.setattr(views, "open_records", lambda *_, **__: (opened, many))
    assert len(write_report(study).read_bytes()) < 5e6


def test_tables_say_which_trials_are_exact(study):
    opened, records = views.open_records(study)
    rows, columns, cells = views.front_rows(opened, records)
    place = [column.title for column in columns].index("exact")
    said = [cell[place] for cell in cells]
    assert said == ["yes" if row["exact"] else "no" for row in rows] and set(said) == {"yes", "no"}
