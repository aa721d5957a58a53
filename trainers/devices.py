"""Where a training runs: the CPU or a GPU, what is sent there, and how much of it a worker may
take.
"""

from __future__ import annotations

import torch
from torch import Tensor

CONTEXT_BYTES = 600 << 20  # of a GPU's memory that CUDA itself takes for each process, about


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first GPU if there is one. Raises ValueError for one
    that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"there is no device '{name}'; write auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name} is not there: this machine shows {torch.cuda.device_count()} GPUs; "
            "take device: auto "
            "(on Ray, a trial is shown the GPUs that resources.gpus_per_trial asks for)"
        )
    if device.type not in ("cpu", "cuda"):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"device {name} cannot be used: {str(error).splitlines()[0]}; take device: auto"
            ) from None
    return device


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`, without waiting for what a GPU still has to do: a plain copy there
    would.
    """
    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limit_memory(share: float) -> None:
    """Keeps this process to its share of every GPU it sees, between 0 and 1, so that a large trial
    fails by itself and not its neighbours.

    A share of 0 or of 1 and more (no GPU, or whole GPUs) limits nothing. What CUDA needs for the
    process counts.
    """
    if not 0 < share < 1:
        return
    for number in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(number).total_memory
        torch.cuda.set_per_process_memory_fraction(
            max(share / 2, share - CONTEXT_BYTES / total), number
        )
