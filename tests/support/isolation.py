"""Runs code as somebody who has a bundle and not this program: in a process of its own, where other
imports fail.
"""

import subprocess
import sys
from pathlib import Path

OURS = ("trainers", "searchspace", "studies", "escnn", "onnxscript", "torchvision")

GUARD = """
import importlib.util, sys

class Guard:
    # torch looks whether some are there, and does not import them
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec):
        raise ImportError("imported " + spec.name + ", which a user of the bundle need not have")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Guard())
sys.dont_write_bytecode = True
"""


def run_alone(
    code: str, folder: Path, *arguments: object, forbidden: "tuple[str, ...]" = OURS
) -> str:
    """What `code` prints when run in `folder`, without the modules named in `forbidden`; fails the
    test if it fails.
    """
    text = GUARD.format(forbidden=set(forbidden)) + code
    command = [sys.executable, "-W", "error", "-c", text, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TORCH_ACCURACY = """
import torch
from model import load

images, labels = torch.load(sys.argv[1], weights_only=True)
models = load(), torch.export.load("model.pt2").module()
with torch.no_grad():
    for model in models:
        logits = torch.cat([model(part) for part in images.split(128)])
        print(float((logits.argmax(1) == labels).double().mean()))
"""

ONNX_ACCURACY = """
import numpy, onnxruntime

data = numpy.load(sys.argv[1])
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
logits, = session.run(["logits"], {"images": data["images"]})
print((logits.argmax(1) == data["labels"]).mean())
"""


def accuracies(bundle: Path, pixels, labels, folder: Path) -> "list[float]":
    """Accuracy of plain torch, torch.export and ONNX, on uint8 images of the right size, each
    computed by a stranger's script.
    """
    import numpy
    import torch

    images = pixels.float() / 255
    torch.save((images, labels), folder / "data.pt")
    numpy.savez(folder / "data.npz", images=images.numpy(), labels=labels.numpy())
    with_torch = run_alone(
        TORCH_ACCURACY, bundle, folder / "data.pt", forbidden=OURS + ("onnxruntime", "safetensors")
    ).split()
    with_onnx = run_alone(ONNX_ACCURACY, bundle, folder / "data.npz", forbidden=OURS + ("torch",))
    return [float(value) for value in (*with_torch, with_onnx)]
