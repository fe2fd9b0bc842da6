"""What an op of each kind reads and writes: element counts that follow from its loop nest.

Three readings are open to every kind. Operands of role mask or buffer may follow those that the kind asks for
(indices, scales, decisions). A gradient may be a broadcast view, which holds a divisor of the elements
asked for. An op may touch a part of a tensor (``read_elements``) or compute a part of one
(``write_elements``); then that part is what counts. A convolution or matrix product whose loops are those of
its whole result may compute any part of that result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jouletrace.trace.model import (
    Attention,
    Cell,
    Conv,
    Copy,
    Elementwise,
    Gather,
    Gemm,
    Loss,
    Nest,
    Norm,
    Op,
    Pool,
    Reduce,
    Rng,
    Scatter,
    Softmax,
    Sync,
    Tensor,
    Update,
)  # fmt: skip

__all__ = ["disagreements"]


@dataclass(frozen=True)
class _Operands:
    """The operands of one op: tensors, and how many elements of each are touched or computed."""

    op: Op
    reads: tuple[Tensor, ...]
    touched: tuple[int, ...]
    writes: tuple[Tensor, ...]
    computed: tuple[int, ...]

    def count(self, reads: int, writes: int, optional_reads: int = 0) -> Iterator[str]:
        """At least so many operands, and beyond the optional ones only masks and buffers."""
        if len(self.reads) < reads:
            yield f"reads {len(self.reads)} tensors; this kind of op reads at least {reads}"
        for tensor in self.reads[reads + optional_reads :]:
            if tensor.role not in ("mask", "buffer"):
                yield (f"reads {tensor.name!r} as an operand too many; this kind of op reads "
                       f"{reads + optional_reads}, and behind them masks and buffers only")  # fmt: skip
        if len(self.writes) < writes:
            yield f"writes {len(self.writes)} tensors; this kind of op writes at least {writes}"

    def read(self, index: int, what: str, *elements: int) -> Iterator[str]:
        """Operand ``index``, if there is one, touches one of these element counts."""
        if index < len(self.reads):
            tensor, touched = self.reads[index], self.touched[index]
            broadcast = tensor.role == "gradient" and any(n % touched == 0 for n in elements)
            if touched not in elements and not broadcast:
                yield (f"reads {touched} elements of {tensor.name!r} as its {what}; "
                       f"its nest asks for {' or '.join(map(str, dict.fromkeys(elements)))}")  # fmt: skip

    def write(self, index: int, what: str, elements: int) -> Iterator[str]:
        """Of result ``index``, if there is one, exactly so many elements are computed."""
        if index < len(self.writes) and (computed := self.computed[index]) != elements:
            tensor = self.writes[index]
            size = f"of {tensor.elements}" if computed == tensor.elements else f"in {computed} of {tensor.elements}"
            yield f"writes {tensor.name!r} {size} elements as its {what}; its nest asks for {elements}"

    def product(self, what: str, elements: int) -> Iterator[str]:
        """The first result is a product of so many elements, or any part of one that it holds whole."""
        is_part = self.writes and self.computed[0] < elements == self.writes[0].elements
        if not is_part:
            yield from self.write(0, what, elements)

    def any_read(self, what: str, elements: int) -> Iterator[str]:
        if elements not in self.touched:
            yield f"reads no {what} of {elements} elements"


def _window(n: Conv | Pool, dilation: tuple[int, int] = (1, 1)) -> Iterator[str]:
    """Outputs of a sliding window follow from size, padding, kernel, dilation and stride."""
    axes = (("Y", n.IY, n.padding[:2], n.R, n.OY), ("X", n.IX, n.padding[2:], n.S, n.OX))
    for (name, size, padding, kernel, out), apart, stride in zip(axes, dilation, n.stride, strict=True):
        span = size + sum(padding) - apart * (kernel - 1) - 1
        outputs = span // stride + 1 if span >= 0 else 0
        if outputs != out:
            yield (f"has O{name} = {out}, but {outputs} follow from I{name} = {size}, padding {padding[0]} + "
                   f"{padding[1]}, a kernel of {kernel}, dilation {apart} and stride {stride}")  # fmt: skip


def _conv(o: _Operands, n: Conv) -> Iterator[str]:
    yield from _window(n, n.dilation)
    x, w, y = n.N * n.G * n.C * n.IY * n.IX, n.G * n.K * n.C * n.R * n.S, n.N * n.G * n.K * n.OY * n.OX
    first, second, result, bias = {
        "forward": (("x", x), ("w", w), ("y", y), n.G * n.K),
        # As the forward op of a transposed convolution it has a bias.
        "backward_data": (("gy", y), ("w", w), ("gx", x), n.G * n.C),
        "backward_weight": (("gy", y), ("x", x), ("gw", w), 0),
    }[n.role]
    yield from o.count(2, 1, 1 if bias else 0)
    yield from o.read(0, *first)
    yield from o.read(1, *second)
    if len(o.reads) > 2 and o.reads[2].role not in ("mask", "buffer"):
        yield from o.read(2, "bias", bias)
    yield from o.product(*result)


def _gemm(o: _Operands, n: Gemm) -> Iterator[str]:
    yield from o.count(2, 1, 1)
    for index, (name, rows, columns) in enumerate((("a", n.M, n.K), ("b", n.K, n.N))):
        # One matrix, or a whole number of them, may serve several of the B products.
        one, every = rows * columns, n.B * rows * columns
        touched = o.touched[index] if index < len(o.touched) else every
        shared = touched % one == 0 and every % touched == 0
        yield from o.read(index, name, *((touched,) if shared else (every, one)))
    if len(o.reads) > 2 and o.reads[2].role not in ("mask", "buffer"):
        yield from o.read(2, "bias", n.N, n.M * n.N, n.B * n.M * n.N)
    yield from o.product("c", n.B * n.M * n.N)


def _attention(o: _Operands, n: Attention) -> Iterator[str]:
    yield from o.count(3, 1, len(o.reads))
    if o.op.phase == "forward":
        yield from o.read(0, "q", n.B * n.Q * n.D)
        yield from o.read(1, "k", n.B * n.K * n.D)
        yield from o.read(2, "v", n.B * n.K * n.D)
        yield from o.write(0, "y", n.B * n.Q * n.D)


def _elementwise(o: _Operands, n: Elementwise) -> Iterator[str]:
    yield from o.count(1, 1, len(o.reads))
    yield from o.write(0, "result", n.elements)


def _norm(o: _Operands, n: Norm) -> Iterator[str]:
    if n.elements % n.groups:
        yield f"has {n.groups} groups, which do not divide its {n.elements} elements"
    yield from o.count(1 if o.op.phase == "forward" else 2, 1, len(o.reads))
    if o.op.phase == "forward":
        yield from o.read(0, "x", n.elements)
        yield from o.write(0, "y", n.elements)
    else:
        yield from o.read(0, "gy", n.elements)
        yield from o.read(1, "x", n.elements)
        if o.writes and o.writes[0].role == "gradient":  # the first layer has no gx
            yield from o.write(0, "gx", n.elements)


def _pool(o: _Operands, n: Pool) -> Iterator[str]:
    yield from _window(n)
    x, y = n.N * n.C * n.IY * n.IX, n.N * n.C * n.OY * n.OX
    forward = o.op.phase == "forward"
    yield from o.count(1, 1, len(o.reads))
    yield from o.read(0, *(("x", x) if forward else ("gy", y)))
    yield from o.write(0, *(("y", y) if forward else ("gx", x)))


def _reduce(o: _Operands, n: Reduce) -> Iterator[str]:
    if n.outputs > n.elements:
        yield f"reduces {n.elements} elements to {n.outputs}, which are more"
    yield from o.count(1, 1, len(o.reads))
    if sum(o.touched) != n.elements:  # a global norm reads many tensors
        yield from o.read(0, "operand", n.elements)
    yield from o.write(0, "result", n.outputs)


def _softmax(o: _Operands, n: Softmax) -> Iterator[str]:
    backward = o.op.phase != "forward"
    yield from o.count(2 if backward else 1, 1, len(o.reads))
    yield from o.read(0, "gy" if backward else "x", n.rows * n.width)
    if backward:
        yield from o.read(1, "y", n.rows * n.width)
    yield from o.write(0, "result", n.rows * n.width)


def _loss(o: _Operands, n: Loss) -> Iterator[str]:
    yield from o.count(1, 1, len(o.reads))
    if o.op.phase == "forward":
        yield from o.read(0, "prediction", n.rows * n.width)
    else:
        yield from o.write(0, "gradient", n.rows * n.width)


def _gather(o: _Operands, n: Gather) -> Iterator[str]:
    yield from o.count(2, 1, len(o.reads))
    yield from o.any_read("indices", n.rows)
    yield from o.write(0, "result", n.rows * n.width)


def _scatter(o: _Operands, n: Scatter) -> Iterator[str]:
    yield from o.count(2, 1, len(o.reads))
    yield from o.any_read("indices", n.rows)
    if o.writes and o.computed[0] % n.width:
        yield f"writes {o.writes[0].name!r}, whose {o.computed[0]} elements are not rows of {n.width}"


def _copy(o: _Operands, n: Copy) -> Iterator[str]:
    yield from o.count(0, 1, len(o.reads))
    if (written := sum(o.computed)) != n.elements:
        yield f"writes {written} elements; its nest asks for {n.elements}"


def _cell(o: _Operands, n: Cell) -> Iterator[str]:
    yield from o.count(2, 1, len(o.reads))
    state = n.batch * n.hidden
    gates = (4 if n.function == "lstm" else 3) * state
    if o.op.phase == "forward":
        if sum(o.touched) < gates + state:
            yield f"reads {sum(o.touched)} elements; its gates and its state have {gates + state}"
        yield from o.write(0, "state", state)
    elif sum(o.computed) < gates:
        yield f"writes {sum(o.computed)} elements; the gradient of its gates has {gates}"


def _update(o: _Operands, n: Update) -> Iterator[str]:
    if o.op.phase != "update":
        yield f"updates a parameter in phase {o.op.phase}; the phase of an update op is 'update'"
    yield from o.count(2, 1, len(o.reads))
    yield from o.read(0, "parameter", n.elements)
    yield from o.read(1, "gradient", n.elements)
    yield from o.write(0, "parameter", n.elements)
    for which, tensors in (("reads", o.reads), ("writes", o.writes)):
        if tensors and tensors[0].role != "param":
            yield f"{which} {tensors[0].name!r} of role {tensors[0].role} where its parameter is expected"
    if o.reads and o.writes and o.reads[0].shape != o.writes[0].shape:
        yield f"turns a parameter of shape {o.reads[0].shape} into one of shape {o.writes[0].shape}"
    old, new = (sorted(t.shape for t in ts if t.role == "optimizer_state") for ts in (o.reads, o.writes))
    if old != new:
        yield "reads optimizer states of other shapes than it writes"


def _rng(o: _Operands, n: Rng) -> Iterator[str]:
    yield from o.count(0, 1, len(o.reads))
    yield from o.write(0, "result", n.elements)


def _sync(o: _Operands, n: Sync) -> Iterator[str]:
    """A barrier reads and writes what it likes."""
    return iter(())


_RULES: dict[type[Nest], Callable[[_Operands, Any], Iterator[str]]] = {
    Conv: _conv, Gemm: _gemm, Attention: _attention, Elementwise: _elementwise, Norm: _norm, Pool: _pool,
    Reduce: _reduce, Softmax: _softmax, Loss: _loss, Gather: _gather, Scatter: _scatter, Copy: _copy,
    Cell: _cell, Update: _update, Rng: _rng, Sync: _sync,
}  # fmt: skip


def disagreements(
    op: Op, reads: tuple[Tensor, ...], touched: tuple[int, ...], writes: tuple[Tensor, ...]
) -> Iterator[str]:
    """Half-sentences about operands that do not fit the nest of ``op``; ``touched`` are the elements read.

    How many elements of each result are computed, ``op.write_elements`` says.

    >>> from jouletrace.trace.model import Gemm
    >>> a, b, c = (Tensor(n, (4, 4), 32, "fp", "activation") for n in "abc")
    >>> op = Op("fc:forward", "forward", "fc", Gemm(1, 4, 4, 5), ("a", "b"), ("c",))
    >>> next(disagreements(op, (a, b), (16, 16), (c,)))
    "reads 16 elements of 'a' as its a; its nest asks for 20"
    """
    if op.write_elements and len(op.write_elements) != len(writes):
        return iter((f"has {len(op.write_elements)} write_elements for {len(writes)} writes",))
    computed = op.write_elements or tuple(t.elements for t in writes)
    return _RULES[type(op.nest)](_Operands(op, reads, touched, writes, computed), op.nest)
