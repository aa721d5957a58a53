"""Ray nodes as processes of their own, and the command as their user runs it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RAY = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def equisearch(folder, *arguments, **environment):
    """The command as a user runs it, in `folder`; Ray's variables are those given."""
    own = {name: value for name, value in os.environ.items() if name not in RAY}
    return subprocess.run(
        [sys.executable, "-m", "studies.cli", *map(str, arguments)],
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=300,
        env={**own, "HOME": str(folder), "PYTHONPATH": str(ROOT), **environment},
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def node(python, folder, *arguments, **environment):
    """A Ray node in a process of its own, ended with all it started."""
    folder.mkdir(exist_ok=True)
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in RAY and name != "PYTHONPATH"
    }
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            python,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--disable-usage-stats",
            "--object-store-memory=134217728",
            *arguments,
        ],
        cwd=folder,
        stdout=log,
        stderr=log,
        env={**own, **environment},
    )
    try:
        deadline = time.monotonic() + 120
        while "will now block forever" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (
                folder / "log"
            ).read_text()
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def write_images(folder):
    """A study of 3 trials in `folder`, and its images: two classes that differ in brightness."""
    import numpy
    from PIL import Image

    rng = numpy.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(level - 50, level + 50, (12, 12), dtype=numpy.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    (folder / "study.yaml").write_text(
        "data: {folder: images}\ntraining: {epochs: 2, batch_size: 16}\nspace: {backbone: '2k3 "
        "*, 2k3', input_size: [12, 13]}\n"
        "search: {trials: 3, rungs: [1], sampler: random}\nresources: {custom: {special: 1}}\n"
    )
