"""The length of a run-length code against an encoder that writes it."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.hardware.spec import Compression
from jouletrace.mapping.run_length import coded_bytes

from .row_bench import array_of, eyeriss

CODE = array_of(eyeriss()).compression
assert CODE is not None


def encoded(values: list[int], longest_run: int) -> list[tuple[int, int]]:
    """(run, level) pairs; a run that grows too long is closed by a level of zero."""
    pairs: list[tuple[int, int]] = []
    run = 0
    for value in values:
        if value == 0 and run < longest_run:
            run += 1
        else:
            pairs.append((run, value))
            run = 0
    return [*pairs, (run, 0)] if run else pairs


def decoded(pairs: list[tuple[int, int]]) -> list[int]:
    return [value for run, level in pairs for value in (*[0] * run, level)]


@pytest.mark.parametrize("run_bits", [1, 3, 5])
@pytest.mark.parametrize("density", [Fraction(1, 50), Fraction(1, 5), Fraction(3, 5), Fraction(99, 100)])
def test_the_expected_length_is_that_of_an_encoder(run_bits: int, density: Fraction) -> None:
    """200,000 values: the relative deviation of their code is of the order of one in a thousand."""
    random, count = Random(7), 200_000
    values = [int(random.random() < density) for _ in range(count)]
    pairs = encoded(values, 2**run_bits - 1)
    assert decoded(pairs)[:count] == values
    code = CODE.model_copy(update={"run_bits": run_bits})
    assert coded_bytes(count, 16, density, code) == pytest.approx(len(pairs) / 3 * 8, rel=0.02)


def test_corners_of_the_code() -> None:
    # Dense values: three of 16 bits in each word of 64. Nothing but zeros: 32 in a pair. Nothing: nothing.
    assert coded_bytes(300, 16, Fraction(1), CODE) == 800
    assert coded_bytes(32 * 3, 16, Fraction(0), CODE) == 8
    assert coded_bytes(0, 16, Fraction(1, 2), CODE) == 0
    # A 32-bit value is two levels.
    assert coded_bytes(300, 32, Fraction(1), CODE) == 1600


@given(st.integers(1, 10**7), st.integers(0, 100), st.integers(1, 8))
def test_denser_values_take_longer_codes(elements: int, present: int, run_bits: int) -> None:
    code: Compression = CODE.model_copy(update={"run_bits": run_bits})
    lengths = [coded_bytes(elements, 16, Fraction(p, 101), code) for p in (present, present + 1)]
    assert lengths[0] <= lengths[1] <= coded_bytes(elements, 16, Fraction(1), code)
