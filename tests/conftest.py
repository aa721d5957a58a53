"""What every test shares: one thread a process (more lose 3 to 5 times beside other processes), and
where the large data lies.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
# before ray is: under `uv run` it would build an environment for every worker
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

from pathlib import Path

import pytest

# The files that take longest begin first, so that no process works on one alone at the end.
LONGEST = (
    "test_ray_faults.py",
    "test_search_efficiency.py",
    "test_executors.py",
    "test_retrain.py",
    "test_declaration.py",
    "test_cluster.py",
    "test_old_assets.py",
)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder that holds MNIST/raw; skips where it is missing."""
    if not (SHARED / "MNIST" / "raw").is_dir():
        pytest.skip(
            f"MNIST is not in {SHARED}: put its four files under MNIST/raw there to run this test"
        )
    return SHARED


@pytest.fixture(scope="session")
def cifar_folder() -> Path:
    """A small CIFAR-10 as an image folder; skips where it is missing."""
    if not (SHARED / "cifar10_small").is_dir():
        pytest.skip(
            f"cifar10_small is not in {SHARED}: put an image folder with train/ and test/ there "
            "to run this test"
        )
    return SHARED / "cifar10_small"


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory):
    """The key that studies are signed with lies in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUISEARCH_STATE", str(tmp_path_factory.mktemp("state") / "equisearch"))
        yield


@pytest.fixture(autouse=True)
def threads():
    """Commands take every core; the next test finds the threads that this one found."""
    import torch

    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


def pytest_addoption(parser):
    parser.addoption(
        "--proof-seeds",
        default="10:40",
        metavar="FROM:TO",
        help="random networks of the slow exactness proof, 250 a seed",
    )


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_generate_tests(metafunc):
    if "proof_seed" in metafunc.fixturenames:
        first, _, end = metafunc.config.getoption("--proof-seeds").partition(":")
        metafunc.parametrize("proof_seed", range(int(first), int(end)))


@pytest.fixture(scope="module")
def connected():
    """Ray on two workers, started once for all tests of a file: each start costs seconds."""
    from studies.workers.local_ray import local_ray

    with local_ray(num_cpus=2):
        yield
