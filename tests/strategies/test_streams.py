"""Random streams: by seed and name, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jouletrace.strategies.streams import stream


@given(st.integers(0, 2**64), st.text(max_size=5), st.integers(0, 50), st.integers(50, 100))
def test_a_longer_draw_begins_with_the_shorter_one(seed: int, name: str, short: int, long: int) -> None:
    assert (stream(seed, name).random(long)[:short] == stream(seed, name).random(short)).all()
    assert (stream(seed, name).binomial(128, 0.6, long)[:short] == stream(seed, name).binomial(128, 0.6, short)).all()


def test_other_seeds_and_names_draw_otherwise() -> None:
    names = [("slu", "a"), ("slu", "b"), ("smd", "a"), ("slua",), ("slu", "a", "")]
    draws = {tuple(stream(seed, *name).integers(0, 1 << 30, 4).tolist()) for seed in (0, 1, 10) for name in names}
    assert len(draws) == 15


def test_draws_are_those_of_every_machine() -> None:
    # NumPy keeps the values of Philox and of SeedSequence from version to version.
    assert stream(7, "smd").integers(0, 1000, 5).tolist() == [760, 64, 1, 659, 781]
