"""The data of a benchmark, or one sentence and exit status 1 where they are missing."""

from trainers.data.datasets import Splits, load
from trainers.settings import Data


def load_or_exit(data: Data, size: tuple[int, int]) -> Splits:
    """The images of `data` at `size`; ends the program where they cannot be read."""
    try:
        return load(data, size)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
