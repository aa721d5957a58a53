"""Every README says what is so: its commands parse (quick ones run), its Python runs, its study
files are valid, its links and file names exist, its references are complete.
"""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from searchspace.recipe import Candidate
from studies.cli import main as cli
from studies.config import parse
from studies.sections import Constraints, Loggers, Resources, Search
from trainers.settings import Augment, Data, Symmetry, Training

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("searchspace", "trainers", "studies")
READMES = sorted(
    path
    for path in [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("tests/*/README.md")]
    if path.parent.name != "assets"
)
TOP = (ROOT / "README.md").read_text()


def each_readme(function):
    return pytest.mark.parametrize("path", READMES, ids=lambda p: str(p.relative_to(ROOT)))(
        function
    )


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def prose(text):
    """The text without its blocks."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@each_readme
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


@each_readme
def test_files_and_folders_that_are_named_exist(path):
    """Every name in backticks that ends like a file of the checkout, or like a folder of it."""
    places = [path.parent, ROOT, ROOT / "tests", *(ROOT / package for package in PACKAGES)]
    for span in re.findall(r"`([^`\n]+)`", prose(path.read_text())):
        name = span.split()[-1] if span.startswith(("python ", "uv run ")) else span
        if re.fullmatch(r"[\w./-]+\.(py|toml|json\.gz)|[a-z_]+(/[a-z_]+)*/([a-z_]+)?", name):
            made_by_a_study = name.split("/")[0] in (
                "train",
                "validation",
                "test",
                "runs",
                "model.py",
            )
            rooms = [q for place in places for q in (place / name, *place.glob(f"*/{name}"))]
            assert made_by_a_study or any(q.exists() for q in rooms), name


def command_lines(text):
    """The words of every equisearch command in blocks and in backticks."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    lines += re.findall(r"`((?:uv run )?equisearch [^`]*)`", prose(text))
    for line in lines:
        words = shlex.split(" ".join(line.split()), comments=True)
        while "equisearch" in words:
            words = words[words.index("equisearch") + 1 :]
            end = next((n for n, word in enumerate(words) if word in ("&&", "|", ">")), len(words))
            yield words[:end]


def parsed(words):
    """Parses a command's words as the program does, without running it; placeholders become
    values."""
    group = get_command(cli.app)
    numbers = ("TRIAL", "A", "B", "knee")  # knee: looked up in the study
    words = ["7" if word in numbers else word for word in words if not word.startswith("[")]
    with group.make_context("equisearch", list(words)) as context:
        name, command, rest = group.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        if rest:
            command.make_context(name, rest, parent=context).close()


@each_readme
def test_commands_parse(path):
    for words in command_lines(path.read_text()):
        if words and "..." not in words:
            parsed(words)


def test_a_command_that_does_not_parse_is_seen():
    for words in (["front", "runs/x", "--figures", "a.png"], ["fronts", "x"], ["show", "x", "one"]):
        with pytest.raises(Exception, match=r"No such|valid"):
            parsed(words)


@each_readme
def test_benchmarks_know_the_options_that_are_written(path):
    spans = re.findall(r"`([^`]*bench_\w+\.py[^`]*|\.\.\. [^`]*)`", prose(path.read_text()))
    programs, script = ROOT / "tests" / "benchmarks", ""
    for span in spans:
        named = re.search(r"(bench_\w+\.py)", span)
        script = (programs / named[1]).read_text() if named else script
        if "row_parser(" in script:  # options that benchmarks of named rows share
            script += (programs / "benchmark_data.py").read_text()
        for option in re.findall(r" (--[\w-]+)", span):
            assert f'"{option}"' in script, span


def test_the_readmes_list_every_command_and_no_other():
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    reference = (ROOT / "studies" / "README.md").read_text()
    rows = re.findall(r"^\| `equisearch (\w+)", reference, re.MULTILINE)
    assert sorted(rows) == sorted(names)
    table = TOP.partition("## Commands")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [a-z-]+ \| (.+) \|$", table, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(names)


@pytest.mark.parametrize(
    "path", [*READMES, ROOT / "CHANGELOG.md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_prose_fits_100_columns(path):
    lines = path.read_text().splitlines()
    assert not [line for line in lines if len(line) > 100 and not line.startswith("|")]


@each_readme
def test_architectures_parse(path):
    for text in re.findall(r"(\d+(?:x\d+)?px: \d+k[^`\"\n|]+)", path.read_text()):
        Candidate.parse(text)


@each_readme
def test_study_files_are_valid(path):
    for block in blocks(path.read_text(), "yaml"):
        content = yaml.safe_load(block)
        parse(block if "data" in content else f"data: {{name: digits}}\n{block}", name=path.name)


@pytest.mark.parametrize(
    "package, section, model",
    [
        ("studies", "search", Search),
        ("studies", "resources", Resources),
        ("studies", "constraints", Constraints),
        ("studies", "loggers", Loggers),
        ("trainers", "data", Data),
        ("trainers", "training", Training),
        ("trainers", "augment", Augment),
        ("trainers", "symmetry", Symmetry),
    ],
)
def test_the_reference_of_the_study_file_is_complete(package, section, model):
    text = (ROOT / package / "README.md").read_text()
    part = text.partition(f"### `{section}:`")[2].partition("\n### ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", part, re.MULTILINE))
    assert list(rows) == list(model.model_fields)
    for name, default in rows.items():
        value = model.model_fields[name].default
        written = yaml.safe_load(default.strip("`"))
        if isinstance(value, BaseModel):
            assert type(value)(**written) == value, name
        else:
            plain = list(value) if isinstance(value, tuple) else value
            assert written == (str(plain) if isinstance(plain, Path) else plain), name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_and_module_stands_in_its_packages_readme(package):
    text = (ROOT / package / "README.md").read_text()
    words = set(re.findall(r"\w+", text))
    for path in (ROOT / package).rglob("*.py"):
        assert path.stem in words or path.stem in ("__init__", "__main__"), path
        assert path.parent.name in words, path.parent


@pytest.fixture(scope="module")
def from_python(tmp_path_factory):
    """A folder in which the top README's Python has run."""
    folder = tmp_path_factory.mktemp("readme")
    run_python(TOP, folder)
    return folder


def run_python(text, folder):
    """Runs the Python of one README in `folder`, as one script."""
    script = "\n".join(blocks(text, "python"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["readme"])
        exec(compile(script, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("package", PACKAGES)
def test_the_python_of_a_packages_readme_runs(package, tmp_path):
    run_python((ROOT / package / "README.md").read_text(), tmp_path)


def test_the_quick_commands_of_the_top_readme_run_on_what_its_python_made(
    from_python, monkeypatch, capsys
):
    bundles = list((from_python / "runs" / "from_python" / "exports").iterdir())
    assert [bundle.name for bundle in bundles] and (bundles[0] / "README.md").is_file()
    monkeypatch.chdir(from_python)
    done = []
    for words in command_lines("\n".join(f"```bash\n{b}```" for b in blocks(TOP, "bash"))):
        if words[0] not in ("front", "report", "show", "check", "presets"):
            continue
        words = [re.sub(r"^runs/\w+$", "runs/from_python", word) for word in words]
        words = ["0" if word.isdigit() else word for word in words]
        monkeypatch.setattr(sys, "argv", ["equisearch", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, words
        assert capsys.readouterr().out.strip()
        done.append(words[0])
    assert done == ["front", "show", "report", "check", "presets"]


def test_the_template_that_the_top_readme_prints_is_a_study_file():
    assert "presets folder > my_study.yaml" in TOP and "start my_study.yaml" in TOP
    parse((ROOT / "studies" / "presets" / "folder.yaml").read_text())
