"""The latency equations of EF-Train (arXiv 2202.10935, Eq. 15-29), as an oracle for the tile pipeline.

They stand in the tests only: the package finds the same cycles by executing loads, computing and stores. Two
conventions of the authors' script: the last block has M mod M_on channels, and a first layer with N <= 4 moves
ceil(N/p) words per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass


def up(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Layer:
    M: int
    N: int
    R: int
    C: int
    K: int
    S: int
    batch: int
    Tr: int
    Tc: int
    Mon: int
    Tm: int = 16
    Tn: int = 16
    p: int = 4
    ts: int = 400


def blocks(channels: int, resident: int) -> list[int]:
    return [resident] * (channels // resident) + ([channels % resident] if channels % resident else [])


def t_ifm(l: Layer, N: int) -> int:
    words = up(N, l.p) if N <= 4 else up(l.Tn, l.p)
    return l.ts + words * ((l.Tr - 1) * l.S + l.K) * ((l.Tc - 1) * l.S + l.K)


def forward(l: Layer) -> int:
    comp, ifm = l.Tr * l.Tc * l.K**2, t_ifm(l, l.N)
    wei, out = up(l.Tm * l.Tn, l.p) * l.K**2, up(l.Tm, l.p) * l.Tr * l.Tc
    load, n, r = max(ifm, wei), up(l.N, l.Tn), up(l.R, l.Tr)
    p1, p2, store = max(ifm, comp), max(load, comp), max(comp, out)
    total = 0
    for block in blocks(l.M, l.Mon):
        m = up(block, l.Tm)
        lat1, lat2 = (n - 1) * p1 + ifm + comp, (n - 1) * p1 + ifm + store
        first1, first2 = (n - 1) * p2 + load + comp, (n - 1) * p2 + load + store
        lat3 = (m * r - 1) * lat2 + lat1 + out + l.ts
        first3 = m * (r - 1) * lat2 + (m - 1) * first2 + first1 + out + l.ts
        total += (l.batch - 1) * lat3 + first3
    return total


def backward_data(l: Layer) -> int:
    """Forward with M and N exchanged; the resident block of a step comes at once, with the first loop."""
    M, N = l.N, l.M
    comp, ifm, out = l.Tr * l.Tc * l.K**2, t_ifm(l, N), up(l.Tm, l.p) * l.Tr * l.Tc
    n, r = up(N, l.Tn), up(l.R, l.Tr)
    p1, store = max(ifm, comp), max(comp, out)
    total = 0
    for block in blocks(M, l.Mon):
        m = up(block, l.Tm)
        stored = m * l.Tm  # the last block lies in whole tiles, like every other
        load = max(ifm, up(stored * l.Tn, l.p) * l.K**2 + l.ts)
        lat1, lat2 = (n - 1) * p1 + ifm + comp, (n - 1) * p1 + ifm + store
        first1 = (n - 1) * max(load, comp) + load + comp
        lat3 = (m * r - 1) * lat2 + lat1 + out + l.ts
        first3 = (m * r - 1) * lat2 + first1 + out + l.ts
        total += (l.batch - 1) * lat3 + first3
    return total


def backward_weight(l: Layer) -> int:
    comp, ifm = l.Tr * l.Tc * l.K**2, t_ifm(l, l.N)
    ofm, out = l.ts + up(l.Tm, l.p) * l.Tr * l.Tc, up(l.Tm * l.Tn, l.p) * l.K**2
    load, n, r = max(ifm, ofm), up(l.N, l.Tn), up(l.R, l.Tr)
    p1, p2, store = max(load, comp), max(ifm, comp), max(comp, out)
    total = 0
    for block in blocks(l.M, l.Mon):
        m = up(block, l.Tm)
        if l.Tr < l.R:
            lat1, last1 = (r - 1) * p1 + load + comp, (r - 1) * p1 + load + store
            total += ((l.batch - 1) * m * n + 1) * lat1 + (m * n - 1) * last1 + out
        else:
            lat1 = (n - 1) * p2 + load + comp
            last1 = (n - 1) * (p2 + out) + load + comp + out
            total += m * ((l.batch - 1) * lat1 + last1)
    return total


EQUATIONS = {"forward": forward, "backward_data": backward_data, "backward_weight": backward_weight}
