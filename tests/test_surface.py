"""The Python surface: what scripts and notebooks get from `studies`, and what imports cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import searchspace
import studies
import trainers
from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies import StudyError, open_study
from studies.output import Column
from studies.results.opened import TrialTable
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (searchspace, trainers, studies)


def fails_at_times(study, assignment, report):
    if assignment.number in (2, 5):
        raise RuntimeError("the <weights> & more")
    trivial.trainable(study, assignment, report)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    directory = tmp_path_factory.mktemp("surface") / "cells"
    with SearchDriver.create(directory, trivial.study(search__trials=12)) as driver:
        run_in_process(driver, fails_at_times)
    return open_study(directory)


def test_importing_the_package_imports_nothing_and_its_names_nothing_heavy():
    code = (
        "import sys, searchspace, studies, trainers\n"
        "bare = [name for name in ('pydantic', 'yaml', 'torch') if name in sys.modules]\n"
        "bare += [name for name in sys.modules if name.startswith(('searchspace.', 'trainers.'))]\n"
        # the classifier is one of scikit-learn's, which brings numpy
        "for name in {*studies.__all__} - {'EquivariantClassifier'}: getattr(studies, name)\n"
        "heavy = {'torch', 'escnn', 'optuna', 'ray', 'numpy', 'pandas', 'sklearn', 'matplotlib'}\n"
        "print(bare, sorted(heavy & {*sys.modules}), studies.open_study.__module__)\n"
        "studies.EquivariantClassifier\n"
        "print(sorted({'torch', 'escnn', 'optuna', 'ray'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[] [] studies.results.opened\n[]\n", (done.stdout, done.stderr)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_is_there_and_others_are_refused(package):
    assert [name for name in package.__all__ if getattr(package, name, None) is None] == []
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_type_checkers_see_the_same_names_in_the_same_places(package):
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING
    declared = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    places = {}
    for name, place in package._WHERE.items():
        module, _, inner = place.partition(":")
        places[name] = (f"{package.__name__}.{module}", inner or name)
    assert declared == places and sorted(declared) == sorted(package.__all__)


def test_the_front_is_what_the_command_prints_and_reads_as_a_data_frame(opened):
    pytest.importorskip("pandas")
    status, front, trials = opened.status, opened.front, opened.trials
    assert len(front) == status["front_size"] > 1 and len(trials) == 12
    assert front.best["knee"] and [row["knee"] for row in front].count(True) == 1
    assert front[0] is next(iter(front)) and front[:2] == front.rows[:2]
    frame = front.to_frame()
    assert list(frame.index) == [row["trial"] for row in front]
    assert list(frame["values.accuracy"]) == [row["values"]["accuracy"] for row in front]
    assert list(opened.trials_frame()["state"]) == [row["state"] for row in trials]
    assert trials.best is None and opened.study.search.trials == 12
    assert "trials: 12" in opened.study_file


def test_an_empty_table_is_an_empty_frame():
    pytest.importorskip("pandas")
    assert len(TrialTable((), (Column("trial"),), ()).to_frame()) == 0


def test_without_pandas_the_message_says_what_to_install(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        opened.front.to_frame()


def test_a_notebook_shows_front_trials_and_study_with_every_text_escaped(opened):
    assert "the &lt;weights&gt; &amp; more" in opened.trials._repr_html_()
    assert "<weights>" not in opened.trials._repr_html_()
    page = opened._repr_html_()
    assert page.count("<svg") == 1 and page.count("<table>") == 1
    for row in opened.front:
        assert row["architecture"] in page
    table = TrialTable(({"trial": 0},), (Column("<b>title"),), (("<script>1</script>",),))
    assert "<script>" not in table._repr_html_() and "<b>" not in table._repr_html_()


def test_a_long_table_is_cut_in_a_notebook_and_says_so():
    table = TrialTable((), (Column("trial"),), tuple((f"number{n}",) for n in range(300)))
    shown = table._repr_html_()
    assert "number199" in shown and "number200" not in shown and "and 100 more" in shown


def test_a_notebook_shows_an_architecture_and_its_verdict():
    architecture = Architecture.parse("29px: 10k3@C4, 10k3 max2/2, 10k3, 8k3, 8k3p0")
    drawn = architecture._repr_html_()
    assert str(architecture) in drawn and drawn.count("<rect") == 6
    assert "max2/2: height and width shifted by 1 px" in drawn
    whole = Architecture.parse("28px: 10k3@C4, 10k3 max2/2")._repr_html_()
    assert "shifted" not in whole and whole.count("<rect") == 3
    found = verdict(architecture, Group.parse("D4"))._repr_html_()
    assert "not exact under D4: 1 of 8 elements survives (e)" in found
    assert found.count("<tr>") == 8 and "not built in from stage 1 on" in found
    assert "exact under C4<" in verdict(Architecture.parse("28px: 4k3@C4"))._repr_html_()


def test_a_notebook_shows_a_check_with_its_repairs_and_a_candidate_with_its_loss():
    found = studies.check("29px: 10k3@C4, 10k3 max2/2")._repr_html_()
    assert "not exact under C4" in found and "10k3 max2/2 -&gt; 10k3 conv3/2p1" in found
    assert "To make it exact" not in studies.check("28px: 10k3@C4, 10k3 max2/2")._repr_html_()
    drawn = Candidate.parse("28px: 4k3@C4 loss=layerwise:0.1")._repr_html_()
    assert "loss=layerwise:0.1" in drawn and drawn.count("<rect") == 2


def test_a_directory_without_a_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match="holds no study"):
        open_study(tmp_path)


def test_a_study_that_exists_is_not_started_again(opened, tmp_path):
    with pytest.raises(StudyError, match="already holds a study"):
        studies.start(opened.study, opened.path)


@pytest.mark.parametrize(
    "changes, drawn",
    [({}, True), ({"objectives": ["accuracy"]}, False), ({"search__trials": 0}, False)],
)
def test_a_front_is_drawn_where_it_has_two_objectives_and_members(tmp_path, changes, drawn):
    given = {name: value for name, value in changes.items() if value != 0}
    with SearchDriver.create(tmp_path / "study", trivial.study(**given)) as driver:
        if changes.get("search__trials") != 0:
            run_in_process(driver, trivial.trainable)
    assert ("<svg" in open_study(tmp_path / "study").front._repr_html_()) is drawn
