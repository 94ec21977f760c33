"""What is taken, from times alone."""

from __future__ import annotations

import pytest

from fasttx.trust.choosing import MARGIN, MARGIN_ON_OWN, Times, choose


def at(median: float, noise: float = 0.0) -> Times:
    return Times(median, median - noise, median + noise)


@pytest.mark.parametrize("default, margin", [("cuda", MARGIN), ("torch", MARGIN_ON_OWN)])
def test_pytorchs_own_way_is_left_for_a_larger_gain(default: str, margin: float) -> None:
    for gain, takes in ((margin - 0.01, default), (margin + 0.01, "triton")):
        times = {"plain": {default: at(gain), "triton": at(1.0), "torch": at(gain)}}
        found = choose(default, "torch", times, {}, False)
        assert found is not None and found.takes == takes and found.gains["triton"] == pytest.approx(gain)


def test_within_the_noise_nothing_changes() -> None:
    times = {"plain": {"cuda": at(1.5, 0.3), "triton": at(1.0, 0.3)}}
    assert choose("cuda", "torch", times, {}, False).takes == "cuda"  # type: ignore[union-attr]
    times = {"plain": {"cuda": at(1.5, 0.2), "triton": at(1.0, 0.2)}}
    assert choose("cuda", "torch", times, {}, False).takes == "triton"  # type: ignore[union-attr]


def test_what_is_slower_with_dropout_is_not_taken_for_its_speed_without() -> None:
    times = {"plain": {"cuda": at(3.0), "triton": at(1.0)}, "dropout": {"cuda": at(1.0), "triton": at(1.01)}}
    assert choose("cuda", "torch", times, {}, False).takes == "cuda"  # type: ignore[union-attr]
    times["dropout"]["triton"] = at(1.0)
    found = choose("cuda", "torch", times, {}, False)
    assert found is not None and found.takes == "triton" and found.gain == pytest.approx(3.0**0.5)


def test_the_fastest_of_several_is_taken() -> None:
    times = {"plain": {"cuda": at(3.0), "triton": at(2.0), "torch": at(1.0)}}
    assert choose("cuda", "torch", times, {}, False).takes == "torch"  # type: ignore[union-attr]


def test_where_the_default_is_wrong_the_next_of_the_row_stands_in_for_it() -> None:
    times = {"plain": {"cuda": at(0.1), "triton": at(1.0), "torch": at(0.98)}}
    found = choose("cuda", "torch", times, {"cuda": "fwd is off"}, True)
    assert found is not None and found.takes == "triton" and found.gain is None and found.gain_on_own == 0.98
    assert found.quick and found.left_out == {"cuda": "fwd is off"} and set(found.gains) == {"triton", "torch"}


def test_nothing_that_is_right_is_no_measurement() -> None:
    assert choose("cuda", "torch", {"plain": {"cuda": at(1.0)}}, {"cuda": "wrong"}, False) is None
    assert choose("cuda", "torch", {"plain": {}}, {}, False) is None
    assert choose("cuda", "torch", {"plain": {"cuda": at(1.0)}, "dropout": {}}, {}, False) is None
