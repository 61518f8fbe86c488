import dataclasses

import pytest

from batch_renorm.norm import Ramp


def test_the_paper_s_ramp():
    """rmax = 1, dmax = 0 for 5k steps, then linear to rmax = 3 at 40k, dmax = 5 at 25k."""
    ramp = Ramp.of_length(140_000)
    assert (ramp.start, ramp.rmax_end, ramp.dmax_end) == (5000, 40000, 25000)
    assert ramp == Ramp(5000, 40000, 25000)
    assert ramp(0) == ramp(5000) == (1, 0)
    assert ramp(15000) == (1 + 2 * 10 / 35, 2.5)
    assert ramp(25000) == (1 + 2 * 20 / 35, 5)
    assert ramp(40000) == ramp(10**9) == (3, 5)


def test_knees_scale_with_the_run():
    ramp = Ramp.of_length(1400, rmax=2.0, dmax=1.0)
    assert (ramp.start, ramp.rmax_end, ramp.dmax_end) == (50, 400, 250)
    assert ramp(1400) == (2, 1)


def test_it_never_goes_back():
    ramp = Ramp.of_length(333)
    values = [ramp(step) for step in range(333)]
    assert values == sorted(values)
    assert values[0] == (1, 0)
    assert values[-1] == (3, 5)


def test_a_ramp_without_length_is_a_step():
    ramp = Ramp(0, 0, 0)
    assert ramp(0) == (3, 5)
    assert Ramp(10, 10, 10)(9) == (1, 0)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Ramp(0, 1, 1).start = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 4, 10), "rmax_end=4.*start=5"),
        ((5, 10, 4), "dmax_end=4.*start=5"),
        ((-1, 4, 4), "start=-1"),
        ((0, 1, 1, 0.5), "rmax.*0.5"),
        ((0, 1, 1, 3.0, -2.0), "dmax.*-2"),
        ((float("nan"), 1, 1), "start=nan"),
    ],
)
def test_bad_ramps_name_the_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ramp(*arguments)
