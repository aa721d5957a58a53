"""`equisearch doctor`: whether this machine can run a study, each finding with its remedy."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any, Literal

from trainers.versions import library_versions

Level = Literal["ok", "note", "bad"]
LOOPBACK_ALONE = "the loopback interface alone"
EXAMINED_LIBRARIES = (
    "torch",
    "torchvision",
    "escnn",
    "numpy",
    "optuna",
    "ray",
    "pyarrow",
    "onnx",
    "onnxruntime",
    "ml_dtypes",
    "pydantic",
    "scikit-learn",
)

# (what, code, remedy): imports that are known to break, each tried in a process of its own.
IMPORTS = (
    (
        "torch and torchvision belong together",
        "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)",
        "install torch and torchvision in one command, so that they are resolved together",
    ),
    (
        "ray.tune imports (pyarrow with numpy)",
        "import ray.tune",
        "install 'pyarrow<26' with 'numpy<2': newer pyarrow refuses numpy 1",
    ),
    (
        "escnn builds a steerable convolution (lie_learn with numpy)",
        "import warnings; warnings.filterwarnings('ignore'); from trainers.networks.bases "
        "import basis; from searchspace.groups import Group; basis(Group(8), 3, False)",
        "install 'numpy<2': lie_learn, which escnn needs, is built for numpy 1",
    ),
    (
        "onnx imports (ml_dtypes with numpy)",
        "import onnx, onnxruntime",
        "install 'ml_dtypes<0.6' with 'numpy<2'",
    ),
)
# As `start` starts Ray, in a process of its own: prints the listeners, and whether a process
# without the token is refused.
RAY_TASK = """
import json, ray
from studies.workers.cluster import connected
from studies.sections import Resources
from studies.workers.local_ray import listeners, refuses_strangers
with connected(Resources(address="local")):
    assert ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=60) == 42
    address = ray.get_runtime_context().gcs_address
    print("\\n" + json.dumps({"listeners": listeners(), "closed": refuses_strangers(address)}))
"""
RAY_REMEDY = (
    "look for a firewall on the loopback interface, or a full /tmp and /dev/shm; `resources: "
    "{executor: in_process}` works "
    "without Ray"
)


@dataclass(frozen=True)
class Finding:
    """The result of one examination."""

    what: str
    level: Level  # ok; note: worth knowing; bad: something will not work
    found: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Every finding, one at a time; the whole takes about half a minute."""
    yield _python()
    for name in EXAMINED_LIBRARIES:
        yield _library(name)
    for what, code, remedy in IMPORTS:
        yield _runs(what, code, remedy)
    yield _threads()
    yield _convolutions()
    yield _gpu()
    yield _cache()
    yield from _cluster()
    yield from _ray()


def findings_as_dict(findings: list[Finding]) -> dict[str, Any]:
    """The findings for JSON, and whether none is bad."""
    return {
        "healthy": all(f.level != "bad" for f in findings),
        "findings": [asdict(f) for f in findings],
    }


def _python() -> Finding:
    version = platform.python_version()
    good = (3, 10) <= sys.version_info[:2] <= (3, 12)
    return Finding(
        "Python",
        "ok" if good else "bad",
        version,
        "" if good else "use Python 3.10 to 3.12: escnn's lie_learn has no wheel for others",
    )


def _library(name: str) -> Finding:
    version = library_versions([name]).get(name)
    if version is None:
        return Finding(
            name, "bad", "not installed", f"install {name}, or run through `uv run`, which does"
        )
    limits = {"numpy": (2,), "pyarrow": (26,), "ml_dtypes": (0, 6)}
    limit = limits.get(name)
    if limit and tuple(int(part) for part in version.split(".")[: len(limit)]) >= limit:
        bound = ".".join(map(str, limit))
        return Finding(name, "bad", version, f"install '{name}<{bound}'")
    return Finding(name, "ok", version)


def _runs(what: str, code: str, remedy: str) -> Finding:
    """Runs `code` in a new Python; bad, with the last line of its error, if it fails."""
    good, line = _outcome(code)
    return Finding(what, "ok", "yes") if good else Finding(what, "bad", line, remedy)


def _outcome(code: str) -> tuple[bool, str]:
    """Runs `code` in a new Python that imports what this one does, not what lies in the working
    directory: (True, the last line that it prints) or (False, the last line of its error).
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment.pop("RAY_ADDRESS", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return False, "no answer within 120 s"
    if done.returncode:
        return False, (
            done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        )[-1].removeprefix("studies.errors.StudyError: ")[:300]
    return True, (done.stdout.strip().splitlines() or [""])[-1]


def _cluster() -> Iterator[Finding]:
    """That `start` will go to a cluster, where the environment says so."""
    if address := os.environ.get("RAY_ADDRESS"):
        yield Finding(
            "cluster",
            "note",
            f"RAY_ADDRESS is {address}: studies use that Ray, which is not examined here",
            "`ray status` examines it; unset RAY_ADDRESS to use a Ray of this machine",
        )


def _ray() -> Iterator[Finding]:
    """Whether a Ray task runs, and if so who can reach that Ray."""
    good, line = _outcome(RAY_TASK)
    if not good:
        yield Finding("a Ray task runs", "bad", line, RAY_REMEDY)
        return
    yield Finding("a Ray task runs", "ok", "yes")
    yield _reachable(**json.loads(line))


def _reachable(listeners: Sequence[Sequence[Any]], closed: bool) -> Finding:
    """What `listeners`, (address, port) each, let in: bad where Ray asks for no token."""
    interfaces = sorted({_interface(address) for address, _ in listeners})
    ports = ", ".join(str(port) for _, port in listeners)
    token = "a token is" if closed else "NO token is"
    listening = f"on {' and '.join(interfaces)}, TCP ports {ports} in this run; {token} required"
    if not closed:
        return Finding(
            "Ray listens",
            "bad",
            listening,
            "others can run code as you through these ports: reinstall 'ray>=2.52', or run "
            "without Ray: "
            "`resources: {executor: in_process}`",
        )
    if interfaces != [LOOPBACK_ALONE]:
        return Finding(
            "Ray listens",
            "note",
            listening,
            "others reach these ports and are refused without the run's token; a firewall keeps "
            "them away",
        )
    return Finding("Ray listens", "ok", listening)


def _interface(address: str) -> str:
    """An address as the interface that it stands for."""
    parsed = ip_address(address)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return (
        LOOPBACK_ALONE
        if parsed.is_loopback
        else "every interface"
        if parsed.is_unspecified
        else str(parsed)
    )


def _gpu() -> Finding:
    return _guarded("GPU", _gpu_found)


def _gpu_found() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding(
            "GPU",
            "ok",
            ", ".join(names),
            "trials share them, up to eight per GPU; `resources: {gpus_per_trial: 0.5}` gives "
            "each half of one, 0 none",
        )
    return Finding(
        "GPU",
        "note",
        "none that torch sees: trials run on the CPU",
        "if there is one, compare `nvidia-smi` with torch.version.cuda and reinstall torch for "
        "that driver",
    )


def _threads() -> Finding:
    from studies.sections import Resources
    from trainers.cores import available_cores

    cores = available_cores()
    asked = os.environ.get("OMP_NUM_THREADS")
    per_trial = Resources().cpus_per_trial
    # OpenMP takes a list too, a number for each level
    odd = asked and not re.fullmatch(r"\s*0*[1-9]\d{0,8}\s*(,\s*\d+\s*)*", asked, re.ASCII)
    return Finding(
        "cores",
        "note" if odd else "ok",
        f"{cores}; a trial takes {per_trial:g}" + (f"; OMP_NUM_THREADS={asked}" if asked else ""),
        "OMP_NUM_THREADS must be a number of 1 or more; as it is, OpenMP ignores it" if odd else "",
    )


def _convolutions() -> Finding:
    def look() -> Finding:
        from trainers.networks.kernels import fourier, winograd

        reason = fourier.fourier_status()[1] or winograd.winograd_status()[1]
        if not reason:
            return Finding(
                "convolutions",
                "ok",
                "in the Fourier basis of the group, or in Winograd's form, where that is faster",
            )
        return Finding(
            "convolutions",
            "note",
            f"torch's, or in part: {reason}" if fourier.fourier_library() else f"torch's: {reason}",
            "training on a CPU then takes up to twice as long; scores are the same",
        )

    return _guarded("convolutions", look)


def _cache() -> Finding:
    def look() -> Finding:
        from trainers import cache, cached_arrays

        directory = cache.directory()
        cache.make_folder(directory)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"x")
        size = sum(path.stat().st_size for path in directory.glob("*.npy")) / 1e9
        return Finding(
            "cache directory",
            "ok",
            f"{directory}, {size:.1f} of {cached_arrays.limit() / 1e9:g} GB of images",
        )

    return _guarded(
        "cache directory", look, "set EQUISEARCH_CACHE to a directory that can be written"
    )


def _guarded(what: str, look: Callable[[], Finding], remedy: str = "see the message") -> Finding:
    try:
        return look()
    except Exception as error:  # any fault is a finding
        return Finding(what, "bad", f"{type(error).__name__}: {error}"[:200], remedy)
