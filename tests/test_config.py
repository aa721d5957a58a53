"""What a study file may say, and that every mistake in it is named with its file, line, key and
remedy.
"""

from __future__ import annotations

import re
import textwrap

import pytest
import yaml

from searchspace.cost import cost
from searchspace.recipe import Candidate
from studies import config
from studies.cli.options import pairs
from studies.config import Study, differences, dump, load_study, parse, presets, schema
from studies.errors import StudyFileError
from studies.samplers.inversion import parameters_of
from support import trivial


def complaint(text: str) -> str:
    with pytest.raises(StudyFileError) as caught:
        parse(textwrap.dedent(text), name="my.yaml")
    assert caught.value.exit_status == 1 and isinstance(caught.value, ValueError)
    return str(caught.value)


def test_the_smallest_study_is_one_line():
    study = parse("data: {name: digits}")
    assert study.objectives == ("accuracy", "symmetry_accuracy") and study.search.sampler == "ehvi"


def test_a_dumped_study_parses_back():
    study = trivial.study(
        search__timeout="2h", constraints__params=25000, loggers__tensorboard=True
    )
    assert parse(dump(study)) == study
    assert study.search.timeout == 7200 and study.constraints.params == 25000


def test_unknown_key_is_named_with_line_and_suggestion():
    message = complaint("""\
        data: {name: digits}
        search:
          trials: 5
          sampelr: tpe
        """)
    assert message.startswith(
        "my.yaml, line 4, search.sampelr: unknown key 'sampelr' (did you mean 'sampler'?); "
        "allowed are sampler, trials,"
    )


def test_unknown_section_lists_the_sections():
    message = complaint("data: {name: digits}\nspaces: {}\n")
    assert (
        "line 2, spaces: unknown key 'spaces' (did you mean 'space'?); allowed are data, "
        "training, symmetry, space, objectives" in message
    )


def test_every_mistake_is_one_line():
    message = complaint("data: {name: digits}\nsearch: {trials: 0, eta: 1, sampler: magic}\n")
    lines = message.splitlines()
    assert len(lines) == 3 and all(line.startswith("my.yaml, line 2, search.") for line in lines)
    assert "got 'magic'; input should be 'ehvi', 'evolution'" in message


def test_missing_data_is_named():
    assert (
        complaint("search: {trials: 3}") == "my.yaml, data: this key is missing; it has no default"
    )


def test_unknown_group_says_what_groups_are():
    assert (
        "space.group" in (message := complaint("data: {name: digits}\nspace: {group: [C4, Q4]}\n"))
        and "Q4" in message
    )


def test_a_restriction_that_is_no_subgroup_names_the_subgroups():
    message = complaint(
        "data: {name: digits}\nspace:\n  group: C4\n  restrict: {after: 2, to: D1}\n"
    )
    assert "line 2, space: restrict to D1" in message and "C1, C2" in message


def test_a_space_in_which_nothing_fits():
    assert "no architecture of the space fits" in complaint(
        "data: {name: digits}\nspace: {input_size: 3, layout: max2/2, backbone: '8k3 *, 8k3 *, "
        "8k3 *'}\n"
    )


@pytest.mark.parametrize(
    "wrong,expected",
    [
        (
            "training: {batch_size: many}",
            "training.batch_size: got 'many'; input should be a valid integer",
        ),
        ("objectives: [accuracy, speed]", "objectives.1: got 'speed'; input should be 'accuracy'"),
        ("objectives: [accuracy, accuracy]", "each may be named once"),
        ("search: {rungs: [6, 2]}", "they must increase"),
        ("space: {group: [C4, C4]}", "space.group: group lists 'C4' twice"),
        (
            "search: {repeats: 1, first: ['8px: 2k3', '8px: 2k3p1 head=none']}",
            "first names 8px: 2k3 2 times, however it is spelled, and repeats",
        ),
        ("search: {timeout: soon}", "'soon' is not a duration"),
        ("resources: {workers: 0}", "resources.workers"),
        ("resources: {trial_timeout: 1.0e-300}", "resources.trial_timeout"),
        ("resources: {memory_per_trial: 1.0e+30}", "resources.memory_per_trial"),
        ("resources: {cpus_per_trial: 1.0e+30}", "resources.cpus_per_trial"),
        ("resources: {address: ''}", "resources.address"),
        ("search: {first: [28px: 10k3@C4]}", "search.first: got a mapping, as YAML takes"),
        ("search: 7", "search: got 7; input should be a mapping with sampler, trials"),
        ("constraints: {params: .nan}", "constraints.params"),
        ("symmetry: {angles: 7}", "7 degrees do not divide a full turn of 360; choose one of 1, 2"),
        ("training: {learning_rate: 1e9}", "less than or equal to 100"),
        ("search: {first: ['16px: 2k3 learning_rate=1e9']}", "at most 100"),
        ("space: {learning_rate: 1e9}", "at most 100"),
        ("training: {device: tpu}", "'tpu' is not a device to train on; write auto, cpu, cuda"),
        ("training: {device: meta}", "'meta' is not a device to train on"),
    ],
)
def test_wrong_values_are_named(wrong, expected):
    message = complaint("data: {name: digits}\n" + wrong)
    assert expected in message and message.startswith("my.yaml, line 2")


def test_the_declared_group_is_not_named_a_second_time():
    assert "equivariance_loss.group lists 'declared' and 'C4', which are the same" in complaint(
        "data: {name: digits}\nspace: {equivariance_loss: {group: [declared, C4]}}\n"
        "symmetry: {group: C4}\n"
    )


def test_a_key_given_twice_is_an_error():
    assert "line 3: this is not valid YAML: the key 'search' is given twice" in complaint(
        "data: {name: digits}\nsearch: {}\nsearch: {}\n"
    )


def test_no_yaml_and_no_mapping():
    assert "line 1: this is not valid YAML" in complaint("data: [1, 2")
    assert "a study file is a mapping" in complaint("- a\n- b\n") and "it is empty" in complaint("")


def test_a_binary_file_is_named(tmp_path):
    (tmp_path / "s.yaml").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(StudyFileError, match="s.yaml is not a text file in UTF-8"):
        load_study(tmp_path / "s.yaml")


def test_no_such_file_lists_the_presets():
    with pytest.raises(
        StudyFileError, match="there is no study file 'absent' and no preset of that name"
    ):
        load_study("absent")


def test_numbers_may_be_written_as_everybody_does():
    study = parse(
        "data: {name: digits}\ntraining: {learning_rate: 1e-3, weight_decay: 0}\nconstraints: "
        "{macs: 5e6}\n"
    )
    assert study.training.learning_rate == 0.001 and study.constraints.macs == 5_000_000


def test_the_grid_sampler_refuses_ranges():
    message = complaint(
        "data: {name: digits}\nspace: {learning_rate: {low: 0.001, high: 0.1}}\nsearch: "
        "{sampler: grid}\n"
    )
    assert "the grid sampler tries every choice, but space.learning_rate is a range" in message


def test_rungs_stop_before_the_last_epoch():
    assert trivial.study().rungs == (1, 3, 9)
    assert trivial.study(training__epochs=2).rungs == (1, 2)


def test_paths_are_found_beside_the_file_and_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "s.yaml").write_text("data: {folder: images}\n")
    monkeypatch.chdir("/")
    assert load_study(tmp_path / "s.yaml").data.folder == tmp_path / "images"
    (tmp_path / "t.yaml").write_text("data: {name: mnist}\n")
    assert load_study(tmp_path / "t.yaml").data.root.is_absolute()


def test_differences_are_named():
    assert differences(trivial.study(), trivial.study(search__seed=4, training__epochs=3)) == [
        "training.epochs: 9 -> 3",
        "search.seed: 0 -> 4",
    ]
    assert differences(trivial.study(), trivial.study()) == []


def test_schema_describes_every_section():
    assert set(schema()["properties"]) == set(Study.model_fields)


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets_are_valid(name):
    study = load_study(name)
    assert parse(dump(study)) == study and yaml.safe_load(dump(study))


def test_the_rows_of_ien_are_equal_in_parameters_and_the_last_in_macs():
    study = load_study("ien")
    rows = [Candidate.parse(text) for text in study.search.first]
    prices = [cost(row.architecture) for row in rows]
    group = next(n for n, row in enumerate(rows) if row.architecture.family == "steerable")
    assert all(abs(p.params / 50_000 - 1) < 0.01 for p in prices[:-1])
    assert abs(prices[-1].macs / prices[group].macs - 1) < 0.01
    recipes = {" ".join(row.recipe.options) for row in rows}
    assert len(recipes) >= 5 and any("@R4-2-1" in text for text in recipes)
    # points of the space, that the search learns from (widths do not count)
    assert all(parameters_of(study, row) for row in rows)


def test_a_mistake_in_what_is_set_over_a_file_is_not_looked_for_in_the_file():
    text = "data: {name: digits}\nsearch: {trials: 5}\nspace: {input_size: 3.5}\n"
    with pytest.raises(StudyFileError) as caught:
        parse(text, name="mine.yaml", overrides={"search.trials": "many", "training.epochs": None})
    lines = sorted(str(caught.value).splitlines())
    assert lines[0].startswith("mine.yaml, line 3, space.input_size: got 3.5") and lines[
        1
    ].startswith("search.trials, set over mine.yaml: got 'many'")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("search: {trials: true}", "line 2, search.trials: got true or false"),
        ("search: {rungs: [true, 3]}", "search.rungs.0: got true or false"),
        ("training: {learning_rate: false}", "training.learning_rate: got true or false"),
        ("space: {input_size: {low: true, high: 30}}", "space.input_size.low: got true"),
        ("space: {input_size: [a]}", "space.input_size.0: got 'a'"),
        (
            "space: {input_size: []}",
            "input_size: got a list; a list must hold at least 1 value",
        ),
        ("search: {timeout: true}", "search.timeout: got true"),
        ("search: {trials: null}", "search.trials: got null"),
        ("search: {trials: 1:30}", "search.trials: got '1:30'"),
        ("search: {seed: 100000000000000000000}", "search.seed"),
        ("objectives: [params]", "are costs"),
        ("objectives: [latency, macs]", "are costs"),
        (
            "training: {device: cpu}\nconstraints: {memory: 100}",
            "constraints.memory limits the memory of a GPU",
        ),
        (
            "resources: {gpus_per_trial: 0}\nconstraints: {memory: 100}",
            "constraints.memory limits the memory of a GPU",
        ),
        ("? [a, b]\n: 3", "a key must be a word"),
        ("search: {? {a: 1} : 2}", "a key must be a word"),
        ("resources: {runtime_env: " + "{a: " * 60 + "1" + "}" * 60 + "}", "nested more than 40"),
        ("search: " + "[" * 5000, "nested more than 40"),
        ("search: 2020-13-45", "input should be a mapping"),
        ("# " + "x" * 1_000_000, "at most 1,000,000 are read"),
    ],
)
def test_nonsense_is_refused_in_one_message(wrong, expected):
    message = complaint(f"data: {{name: digits}}\n{wrong}\n")
    assert expected in message and message.count("\n") == 0 and len(message) < 400


def test_aliases_that_repeat_without_limit_are_refused():
    lines = ["data: {name: digits}", "resources:", "  runtime_env:", "    a0: &a0 [x, x]"]
    lines += [f"    a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 10)]
    assert "more than 100,000 values" in complaint("\n".join(lines))
    assert "nested more than 40" in complaint("data: {name: digits}\nsearch: &a [*a]")


def test_null_over_a_file_removes_a_value_and_none_leaves_it():
    text = "data: {name: digits}\nsearch: {timeout: 2h, trials: 5}"
    assert parse(text, overrides={"search.timeout": config.NULL}).search.timeout is None
    assert parse(text, overrides={"search.timeout": None}).search.timeout == 7200
    with pytest.raises(StudyFileError, match="search.trials, set over study: got null"):
        parse(text, overrides={"search.trials": config.NULL})
    assert pairs(["search.timeout=null", "search.seed=1:30", "training.learning_rate=1e-3"]) == {
        "search.timeout": config.NULL,
        "search.seed": "1:30",
        "training.learning_rate": 1e-3,
    }


@pytest.mark.parametrize(
    ("given", "seconds"), [("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), (7, 7)]
)
def test_durations(given, seconds):
    assert parse("data: {name: digits}", overrides={"search.timeout": given}).search.timeout == (
        seconds
    )


def test_rungs_that_no_trial_reaches_are_refused_unless_epochs_were_shortened(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("data: {name: digits}\ntraining: {epochs: 2}\nsearch: {rungs: [5]}")
    with pytest.raises(StudyFileError, match=r"rungs are at epochs 5, and a training has 2"):
        load_study(path)
    path.write_text("data: {name: digits}\ntraining: {epochs: 9}\nsearch: {rungs: [5]}")
    assert load_study(path, {"training.epochs": 2}).rungs == (2,)
    with pytest.raises(StudyFileError, match="rungs are at epochs 20"):
        load_study(path, {"search.rungs": [20]})


def test_what_is_dumped_reads_back_whatever_it_looks_like():
    environment = {"a": "1:30", "b": "1e-3", "c": "010", "d": "0x1f", "e": "null", "f": 1e-05}
    study = parse("data: {name: digits}", overrides={"resources.runtime_env": environment})
    assert parse(dump(study)).resources.runtime_env == environment


@pytest.mark.parametrize("key", ["train", "validation", "test"])
def test_a_split_has_two_images_at_least(key):
    written = f"data: {{name: digits, {key}: 1}}\n"
    assert f"data.{key}: got 1; input should be greater than or equal to 2" in complaint(written)


def test_a_seed_of_data_has_64_bits_at_most():
    assert parse(f"data: {{name: digits, seed: {2**63 - 1}}}").data.seed == 2**63 - 1
    assert "data.seed" in complaint(f"data: {{name: digits, seed: {2**63}}}")


@pytest.mark.parametrize(
    "wrong,says",
    [
        ("training: {batch_size: 99999999}", "batch_size: got 99999999; input should be less than"),
        ("training: {epochs: 1000000000}", "epochs: got 1000000000; input should be less than"),
        ("training: {weight_decay: 1.0e+300}", "weight_decay: got 1e+300; input should be less"),
        ("training: {augment: {rotation: {normal: [0, 1.0e+9]}}}", "both must be at most 360"),
        ("search: {least_steps: 1000000000}", "least_steps: got 1000000000; input should be less"),
        ("resources: {custom: {fpga: -1}}", "custom.fpga: got -1; input should be greater than"),
    ],
)
def test_numbers_under_which_no_study_would_end_are_refused(wrong, says):
    message = complaint(f"data: {{name: digits}}\n{wrong}\n")
    assert says in message and len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "symmetry,loss,refused",
    [
        ("C1", "{kind: [none, layerwise]}", True),
        ("C1", "{kind: layerwise+label@C4}", True),
        ("C4", "{kind: label, group: [declared, C1]}", True),
        ("C8", "{kind: [projection@C4, label]}", False),
        ("C1", "{kind: label, group: D1}", False),
    ],
)
def test_a_loss_needs_an_element_that_moves_images(symmetry, loss, refused):
    space = f"space: {{equivariance_loss: {loss}}}"
    text = f"data: {{name: digits}}\nsymmetry: {{group: {symmetry}}}\n{space}"
    if refused:
        assert "elements of C1 moved" in complaint(text) and len(complaint(text).splitlines()) == 1
    else:
        parse(text)


@pytest.mark.parametrize(
    "given", ["space: {augment: [none, group]}", "training: {augment: {rotation: group}}"]
)
def test_augmentation_by_the_group_needs_an_element_that_turns_images(given):
    text = f"data: {{name: digits}}\nsymmetry: {{group: %s}}\n{given}"
    assert "elements of C1, which leave them as they are" in complaint(text % "C1")
    parse(text % "C2")


@pytest.mark.parametrize(
    "symmetry, loss, says",
    [
        ("C1", "{kind: [none, projection]}", "C1, which is the weight itself; name one of C2, C4"),
        ("C8", "{kind: [none, projection]}", "C8, .*pixels off their grid; name its subgroup C4"),
        ("C4", "{kind: projection@D3}", "D3, .*pixels off their grid; name its subgroup D1"),
        ("C4", "{kind: projection, group: [C2, C3]}", "C3, .*pixels off their grid; name one of"),
    ],
)
def test_weights_are_projected_to_what_keeps_the_grid(symmetry, loss, says):
    space = f"space: {{equivariance_loss: {loss}}}"
    text = f"data: {{name: digits}}\nsymmetry: {{group: {symmetry}}}\n{space}"
    assert re.search(says, complaint(text)) and len(complaint(text).splitlines()) == 1


@pytest.mark.parametrize(
    "value, said",
    [
        ("[1, 2]", "class_weights: got a list; input should be 'none' or 'balanced', or a mapping"),
        ("twice", "class_weights: got 'twice'; input should be 'none' or 'balanced', or a mapping"),
        ("{dog: 1e300}", "class_weights.dog: got 1e+300; input should be less than or equal to"),
    ],
)
def test_of_a_word_or_a_mapping_one_message_names_both(value, said):
    with pytest.raises(StudyFileError) as caught:
        parse(f"data: {{name: digits}}\ntraining: {{class_weights: {value}}}")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["objectives: accuracy", "search: {rungs: 3}"])
def test_what_must_be_a_list_is_said_in_words_of_yaml(text):
    with pytest.raises(StudyFileError, match="input should be a list, in square brackets"):
        parse(f"data: {{name: digits}}\n{text}")
