"""Named random streams: a draw depends on the seed and on its name, never on what else is drawn."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["stream"]


def stream(seed: int, *names: str) -> np.random.Generator:
    """The random stream of a seed and a name, such as ``("slu", "layer1.3")``.

    Draws of a longer run begin with those of a shorter one.

    >>> long, short = (stream(7, "smd").random(n) for n in (5, 3))
    >>> bool((long[:3] == short).all())
    True
    """
    text = "\x1f".join((str(seed), *names)).encode()
    words = np.frombuffer(hashlib.sha256(text).digest(), dtype="<u4")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words.tolist())))
