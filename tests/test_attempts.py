"""How often a trial may lose its worker or its program."""

import pytest

from studies.search.attempts import count_death


def ends_at(died, retries, epochs):
    """The number of the death, of those after `epochs`, that ends the trial; None: none does."""
    attempts, reason = {}, None
    for number, epoch in enumerate(epochs, start=1):
        attempts, reason = count_death(attempts, died, epoch, retries)
        if reason is not None:
            assert "without getting beyond epoch" in reason
            return number
    return None


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_a_worker_may_die_as_often_as_there_are_retries(retries):
    assert ends_at("worker", retries, [3] * 9) == retries + 1


def test_another_epoch_starts_the_counts_again():
    assert ends_at("worker", 2, [1, 1, 2, 2, 3, 3]) is None
    assert ends_at("worker", 2, [1, 1, 2, 2, 2]) == 5


def test_deaths_of_the_program_do_not_depend_on_retries():
    assert ends_at("program", 0, [1] * 99) == ends_at("program", 7, [1] * 99) > 1
