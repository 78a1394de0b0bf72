"""The largest number that fits, found with few compilations."""

import pytest

from iterpref_jax.plan.largest import Tried, largest


def steps(limit, fixed, each, *, says_peaks=True):
    """What compiling says of a number whose peak is a line; and how often it was asked."""
    asked = []

    def attempt(number):
        asked.append(number)
        peak = fixed + each * number
        return Tried(peak <= limit, peak if says_peaks else None, limit)

    return attempt, asked


@pytest.mark.parametrize(
    ("each", "most", "expected"), [(10, 64, 9), (1, 64, 64), (200, 64, 0), (10, 5, 5), (91, 64, 1)]
)
@pytest.mark.parametrize("says_peaks", [True, False])
@pytest.mark.parametrize("first", [1, 4, 64])
def test_the_largest_number_that_fits_is_found(each, most, expected, says_peaks, first):
    attempt, asked = steps(100, 9, each, says_peaks=says_peaks)
    assert largest(attempt, most, first) == expected
    assert len(asked) == len(set(asked)), "nothing is compiled twice"


def test_peaks_on_a_line_need_four_compilations():
    attempt, asked = steps(1000, 100, 9)
    assert largest(attempt, 512, 2) == 100
    assert len(asked) <= 4


def test_peaks_that_jump_are_found_as_well():
    # XLA shares memory: the peak may stand still and then jump.
    def attempt(number):
        peak = 50 if number < 37 else 200
        return Tried(peak <= 100, peak, 100)

    assert largest(attempt, 512, 3) == 36
