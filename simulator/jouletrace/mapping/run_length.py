"""Run-length coding of sparse tensors in DRAM: how long the code of so many values is.

A pair (run, level) codes up to ``2^run - 1`` zeros and the value behind them; after that many zeros a further zero is
coded as a level of its own. With a share d of non-zeros, wherever they lie, a pair codes on average

    1 + (1-d) + (1-d)² + … + (1-d)^(2^run - 1)  =  (1 - (1-d)^(2^run)) / d   values,

as the k-th zero is in the pair if the k values before it are zeros. Dense data grow: by 4/3 with Eyeriss' three pairs
of 5 and 16 bits in 64. Code: Chen et al., JSSC 2017, section IV.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from jouletrace.hardware.spec import Compression
from jouletrace.mapping.transfer import ceil_div

__all__ = ["coded_bytes"]


def coded_bytes(elements: int, bits: int, density: Fraction, code: Compression) -> int:
    """Bytes that elements of so many bits are expected to take when coded, rounded up to whole words of the code.

    An element wider than a level is several values of the same density.

    >>> from jouletrace.hardware.load import load_hardware
    >>> code = load_hardware("eyeriss").array.compression
    >>> [coded_bytes(96, 16, Fraction(1, n), code) for n in (1, 2, 4)]
    [256, 136, 72]
    """
    values = elements * ceil_div(bits, code.level_bits)
    pairs = values / _values_per_pair(density, code.run_bits)
    words = ceil_div(ceil_div(pairs.numerator, pairs.denominator), code.pairs)
    return ceil_div(words * code.word_bits, 8)


@lru_cache(maxsize=1024)
def _values_per_pair(density: Fraction, run_bits: int) -> Fraction:
    longest = 2**run_bits
    return (1 - (1 - density) ** longest) / density if density else Fraction(longest)
