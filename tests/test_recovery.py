"""What published systems show of whole searches and rankings, on images that take a second: which
network is invariant can be told without labels, and a search finds what was planted.
"""

import pytest
import torch
import torch.nn.functional as functional
from sklearn.datasets import load_digits
from test_planted import images_and_turned
from test_planted_groups import planted

from searchspace.architecture import Architecture
from searchspace.groups import Group
from studies import start
from studies.config import parse
from trainers.instruments.accuracy import effective_invariance, predict_elements
from trainers.networks.networks import build
from trainers.networks.projection import partition_distance, shared_entries

C4 = Group.parse("C4")


def predictions(text, seed=0):
    """Of 300 digits under the quarter turns, after 40 steps of training on upright ones."""
    digits, architecture = load_digits(), Architecture.parse(text)
    images = torch.tensor(digits.images[:900, None] / 16, dtype=torch.float32)
    images = functional.interpolate(images, architecture.size, mode="bilinear")
    labels = torch.tensor(digits.target[:900])
    network = build(architecture, channels=1, classes=10, seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(40):
        chosen = torch.randint(600, (64,), generator=draws)
        optimizer.zero_grad()
        functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return predict_elements(network.eval(), images[600:], C4.elements)


def test_effective_invariance_ranks_exact_before_broken_before_plain_without_labels():
    """Deng et al. 2022, on the exact, the two broken and the plain network of arXiv:2308.11316."""
    invariance = {
        name: effective_invariance(predictions(text))
        for name, text in {
            "exact": "8px: 6k3@C4, 6k3 max2/2, 6k3",
            "9px": "9px: 6k3@C4, 6k3 max2/2, 6k3",
            "7px": "7px: 6k3@C4, 6k3 max2/2, 6k3",
            "plain": "8px: 12k3, 12k3 max2/2, 12k3",
        }.items()
    }
    broken = invariance["9px"], invariance["7px"]
    assert invariance["exact"] > 1.2 * max(broken), invariance
    assert min(broken) > 1.2 * invariance["plain"], invariance


STUDY = """
data: {{name: digits}}
training: {{epochs: {epochs}, batch_size: {batch}, learning_rate: 0.03, device: cpu}}
symmetry: {{group: C1}}
space: {{backbone: "{backbone}", group: {groups}, input_size: {size}, relaxation: {relaxations}}}
objectives: [accuracy]
search: {{trials: {trials}, rungs: []}}
resources: {{workers: 1}}
controls: none
"""


def searched(folder, images, labels, number, **given):
    """A study that was searched over images of which the first `number` train and the others
    validate.
    """
    low, high = images.min(), images.max()
    pixels = ((images - low) / (high - low) * 255).round().byte()[:, 0]
    data = {
        "train_images": pixels[:number],
        "train_labels": labels[:number],
        "val_images": pixels[number:],
        "val_labels": labels[number:],
    }
    given = {"relaxations": "[none]", **given}
    return start(parse(STUDY.format(**given)), folder / "study", data=data, probe=False)


@pytest.mark.parametrize("group", ["C4", "D1"])
def test_a_search_over_groups_finds_the_planted_one_in_few_trials(tmp_path, group):
    """Autoequivariant networks train 600 children for that; and the weights that the found group
    shares are those that the planted one does (Yeh et al. 2022), which no other group's are.
    """
    images, labels = planted(group, 100)
    names = ("C1", "C2", "C4", "D1")
    study = searched(
        tmp_path,
        images[:500],
        labels[:500],
        100,
        epochs=15,
        batch=32,
        backbone="4k7p0",
        groups=f"[{', '.join(names)}]",
        size=7,
        trials=6,
    )
    found = str(Architecture.parse(study.front.best["architecture"]).stages[0].group)
    shared = {n: shared_entries((4, 1, 7, 7), None, Group.parse(n)) for n in {*names, found}}
    distances = {n: partition_distance(shared[found], shared[n]) for n in names}
    assert {n for n, distance in distances.items() if distance == 0} == {group}, distances


def test_a_search_returns_the_exact_network_and_chooses_the_relaxed_one(tmp_path):
    """Partial group convolutions' toy: a class and the same turned by 180 degrees."""
    images, labels = images_and_turned()
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    study = searched(
        tmp_path,
        images[mixed],
        labels[mixed],
        24,
        epochs=15,
        batch=12,
        backbone="3k3, 3k3, 3k3",
        groups="[C4]",
        relaxations='[none, "+C1"]',
        size=9,
        trials=4,
    )
    accuracies = {t["architecture"]: t["scores"]["accuracy"] for t in study.trials}
    exact, relaxed = (f"9px: 3k3@C4{soft}, 3k3, 3k3" for soft in ("", "+C1"))
    assert accuracies[exact] == pytest.approx(0.5, abs=0.1) and accuracies[relaxed] > 0.95
    assert study.front.best["architecture"] == relaxed
