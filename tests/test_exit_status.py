"""What the command line itself does not take ends with status 2, what it takes and cannot do with
status 1; each in one line.
"""

import pytest

from support.commands import run  # noqa: F401

ARCHITECTURE = "8px: 2k3@C4, 2k3"
FORM = [  # of the wrong form, or outside an option's range
    ("nothing",),
    ("check",),
    ("check", ARCHITECTURE, "--nothing"),
    ("check", ARCHITECTURE, "--group", "X"),
    ("check", ARCHITECTURE, "--group", ""),
    ("check", ARCHITECTURE, "--size", "1e3"),
    ("check", ARCHITECTURE, "--channels", "0"),
    ("front", "DIR", "--best", "beauty"),
    ("front", "DIR", "--figure", "x.gif"),
    ("show", "DIR", "best"),
    ("soften", "DIR", "0", "--group", "C0"),
    ("soften", "DIR", "0", "--softness", "1.5"),
    ("soften", "DIR", "0", "--softness", "nan"),
    ("measure", "DIR:0", "--data", ""),
    ("measure", "DIR:0", "--set", "data.test=9"),
    ("train", "quickstart", ARCHITECTURE, "--seed", "99999999999999999999"),
    ("probe", "quickstart", "--seed", "99999999999999999999"),
    ("relax", "DIR", "0", "--stage", "1", "--to", "4"),
    ("start", "quickstart", "DIR", "--timeout", "soon"),
    ("start", "quickstart", "DIR", "--workers", "２"),
    ("start", "quickstart", "DIR", "--trials", "0"),
    ("start", "quickstart", "DIR", "--ray-address", " "),
    ("start", "quickstart", "DIR", "--set", "trials"),
    ("export", "DIR", "0", "--seed", ""),
    ("reproduce", "DIR", "--shift", "sideways"),
    ("reproduce", "DIR", "--dropout", "-1"),
    ("replay", "DIR", "--seeds", "99999999999999999999"),
    ("predict", "DIR", "x.png", "--runtime", "jax"),
]
CANNOT = [  # in the right form
    ("check", "9px: 2k3 max99/99"),
    ("check", "8px: 2k3 max2/2", "--size", "1"),
    ("presets", "nothing"),
    ("front", "DIR"),
    ("show", "DIR", "3"),
    ("start", "nothing.yaml", "DIR"),
    ("start", "quickstart", "DIR", "--set", "search.trials=soon"),
    ("start", "quickstart", "DIR", "--enqueue", "/dev/null"),
    ("train", "quickstart", "8px: 2k3 max99/99"),
    ("replay", "DIR"),
    ("verify", "DIR"),
    ("predict", "DIR", "x.png"),
    ("reproduce", "DIR", "--dropout", "1"),
]


@pytest.mark.parametrize(
    "status, words", [*((2, words) for words in FORM), *((1, words) for words in CANNOT)]
)
def test_the_status_says_whether_the_command_line_or_what_it_names_is_wrong(
    run, tmp_path, monkeypatch, status, words
):
    monkeypatch.chdir(tmp_path)
    ended = run(*(word.replace("DIR", str(tmp_path / "absent")) for word in words))
    lines = [line for line in ended.err.splitlines() if line and not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), ended.err
    assert ended.status == status and not ended.out, ended.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("--size", "0"), ("--size=0",)])
def test_a_refused_value_is_repeated(run, words):
    ended = run("check", ARCHITECTURE, *words)
    assert "'--size' (0): it must be greater than or equal to 1" in ended.err
