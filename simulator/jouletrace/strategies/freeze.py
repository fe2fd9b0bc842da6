"""Training a part of a network: frozen layers, and updates of some channels only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import ClassVar, Literal

from jouletrace.errors import RewriteError, did_you_mean
from jouletrace.strategies.base import Notes, Strategy
from jouletrace.trace.graph import successors
from jouletrace.trace.model import Conv, Elementwise, Gemm, Norm, Op, Trace, Update
from jouletrace.trace.prune import without_ops

__all__ = ["FrozenLayers", "SparseUpdate", "layers_matching"]

Statistics = Literal["frozen", "running"]


@dataclass(frozen=True)
class FrozenLayers(Strategy):
    """Parameters of some layers are not trained: no update, no weight gradient, no optimizer state.

    What only served them goes too: inputs saved for weight gradients, and the whole backward pass below the lowest
    trained layer. Forward MACs stay. Layers are those that match one of ``layers`` (patterns such as
    ``layer1.*:conv1``; a layer matches where a module around it does), and those that run before the first op of
    ``below``.

    ``norm_statistics=frozen``: a batch norm whose parameters are all frozen uses its running statistics and leaves
    them as they are, as in evaluation; its backward is one product per element. ``running``: it goes on as before.
    A relu keeps its result for the backward pass, as frameworks do, where one bit per element would be enough.
    """

    name: ClassVar[str] = "freeze"
    source: ClassVar[str] = "L. Yang et al., DA3, CVPR Workshops 2022 (arXiv 2012.01362), section 3"
    stage: ClassVar[str] = "graph"
    claims: ClassVar[frozenset[str]] = frozenset({"trained parameters"})
    changes: ClassVar[frozenset[str]] = frozenset({"op.nest", "op.reads", "op.writes", "tensor.saved"})

    layers: tuple[str, ...] = ()
    below: str | None = None
    norm_statistics: Statistics = "frozen"

    def neutral(self) -> Strategy:
        return replace(self, layers=(), below=None)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        updates = [op for op in trace.ops if op.kind == "update"]
        frozen = {op.name for op in layers_matching(self.name, updates, self.layers)}
        if self.below is not None:
            frozen |= {op.name for op in _before(self.name, trace, updates, self.below)}
        if not frozen:
            notes.leave(trace.header.name, "no layer was named; set layers or below")
            return trace
        if len(frozen) == len(updates):
            raise RewriteError(f"{self.name}: all {len(updates)} parameters of {trace.header.name} would be frozen, so "
                               "that nothing is left to train; name fewer layers")  # fmt: skip
        return _freeze(trace, frozen, self.norm_statistics, notes)


@dataclass(frozen=True)
class SparseUpdate(Strategy):
    """Weights of some layers are trained, and of those a share of the output channels; biases above them too.

    Lin et al., NeurIPS 2022. Of a weight gradient and its update only ``channels`` of the output channels are
    computed (rounded up to whole ones), the same in every step; the input of such a layer is saved whole. ``biases``
    trains the biases of all layers from the lowest of ``layers`` on, norms included. Everything else is frozen as
    by ``freeze``; weights of norms, and weights whose gradient is no single product, are trained whole.
    """

    name: ClassVar[str] = "sparse-update"
    source: ClassVar[str] = "J. Lin et al., On-Device Training Under 256KB Memory, NeurIPS 2022 (arXiv 2206.15472)"
    stage: ClassVar[str] = "graph"
    claims: ClassVar[frozenset[str]] = frozenset({"trained parameters"})
    changes: ClassVar[frozenset[str]] = frozenset({
        "op.nest", "op.reads", "op.writes", "op.read_elements", "op.write_elements", "tensor.saved",
    })  # fmt: skip

    layers: tuple[str, ...] = ("*",)
    channels: Fraction = Fraction(1, 4)
    biases: bool = True
    norm_statistics: Statistics = "frozen"

    def __post_init__(self) -> None:
        self.refuse(
            (not self.layers, "layers has to name at least one layer, such as layer3.*"),
            (not 0 < self.channels <= 1, f"channels has to lie in (0, 1]; it is the share of output channels whose "
             f"weights are trained (got {self.channels})"),
        )  # fmt: skip

    def neutral(self) -> Strategy:
        return replace(self, layers=("*",), channels=Fraction(1), biases=True)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        updates = [op for op in trace.ops if op.kind == "update"]
        biases = _biases(trace)
        chosen = [op for op in layers_matching(self.name, updates, self.layers) if op.reads[0] not in biases]
        if not chosen:
            raise RewriteError(f"{self.name}: {':'.join(self.layers)} of {trace.header.name} have no weights")
        trained = {op.name for op in chosen}
        if self.biases:
            place = _places(trace, updates)
            lowest = min(place[op.name] for op in chosen)
            trained |= {op.name for op in updates if op.reads[0] in biases and place[op.name] >= lowest}
        frozen = {op.name for op in updates} - trained
        after = _freeze(trace, frozen, self.norm_statistics, notes) if frozen else trace
        return self._narrowed(after, chosen, notes) if self.channels < 1 else after

    def _narrowed(self, trace: Trace, chosen: Iterable[Op], notes: Notes) -> Trace:
        """The step with fewer rows of the chosen weight gradients computed and applied."""
        narrow: dict[str, Op] = {}
        for update in chosen:
            weight, gradient = (trace.tensor[name] for name in update.reads[:2])
            maker = trace.writer.get(gradient.name)
            if maker is None or not isinstance(maker.nest, Conv | Gemm) or len(trace.readers[gradient.name]) > 1:
                notes.leave(weight.name, "trained whole, because its gradient is no single product")
                continue
            rows = -(-self.channels.numerator * weight.shape[0] // self.channels.denominator)
            part = weight.elements // weight.shape[0] * rows
            if part == weight.elements:
                notes.leave(weight.name, f"{self.channels} of {weight.shape[0]} channels, rounded up, are all of them")
                continue
            narrow[maker.name] = product = replace(maker, write_elements=(part,))
            narrow[update.name] = _partial(trace, update, part)
            notes.skipped_macs += maker.macs - product.macs
            notes.match(weight.name, f"{rows} of {weight.shape[0]} output channels trained")
        return replace(trace, ops=tuple(narrow.get(op.name, op) for op in trace.ops))


def _partial(trace: Trace, update: Op, part: int) -> Op:
    """An update of so many elements of a parameter and of its states."""
    assert isinstance(update.nest, Update)
    whole = trace.tensor[update.reads[0]].elements
    reads, writes = (
        tuple(part if trace.tensor[name].elements == whole else trace.tensor[name].elements for name in names)
        for names in (update.reads, update.writes)
    )
    return replace(update, nest=replace(update.nest, elements=part), read_elements=reads, write_elements=writes)


# -- which layers


def layers_matching(strategy: str, ops: Collection[Op], patterns: Iterable[str]) -> list[Op]:
    """The ops whose layer, or a module around it, matches a pattern; RewriteError for patterns that match none."""
    found: dict[str, Op] = {}
    problems: list[str] = []
    layers = sorted({op.layer for op in ops})
    for pattern in patterns:
        matching = {layer for layer in layers if any(fnmatchcase(path, pattern) for path in _paths(layer))}
        if not matching and ops:
            problems.append(f"{strategy}: no layer with parameters matches {pattern!r}{did_you_mean(pattern, layers)}; "
                            f"there are {len(layers)}, from {layers[0]} to {layers[-1]}")  # fmt: skip
        found |= {op.name: op for op in ops if op.layer in matching}
    if problems:
        raise RewriteError(problems)
    return [op for op in ops if op.name in found]


def _paths(layer: str) -> Iterator[str]:
    """``a.b.c``, ``a.b`` and ``a``."""
    while layer:
        yield layer
        layer = layer.rpartition(".")[0]


def _places(trace: Trace, updates: Iterable[Op]) -> dict[str, int]:
    """Where in the step the parameter of each update is first read."""
    first: dict[str, int] = {}
    for i, op in enumerate(trace.ops):
        for name in op.reads:
            first.setdefault(name, i)
    return {op.name: first[op.reads[0]] for op in updates}


def _before(strategy: str, trace: Trace, updates: Collection[Op], layer: str) -> list[Op]:
    start = {op.name for op in layers_matching(strategy, trace.ops, (layer,))}
    limit = next(i for i, op in enumerate(trace.ops) if op.name in start)
    place = _places(trace, updates)
    return [op for op in updates if place[op.name] < limit]


def _biases(trace: Trace) -> frozenset[str]:
    """Parameters that are added: the third operand of a product or a norm."""
    third = {op.reads[2] for op in trace.ops
             if op.phase == "forward" and isinstance(op.nest, Conv | Gemm | Norm) and len(op.reads) > 2}  # fmt: skip
    return frozenset(name for name in third if trace.tensor[name].role == "param")


# -- what goes


def _freeze(trace: Trace, frozen: Collection[str], statistics: Statistics, notes: Notes) -> Trace:
    """The step without some updates and all that only served them."""
    parameters = {op.reads[0] for op in trace.ops if op.name in frozen}
    given = _with_given_statistics(trace, parameters) if statistics == "frozen" else {}
    gone = {name for old, new in given.items() for name in trace.op[old].writes if name not in new.writes}
    calm = replace(
        trace,
        tensors=tuple(t for t in trace.tensors if t.name not in gone),
        ops=tuple(given.get(op.name, op) for op in trace.ops),
    )
    after = without_ops(calm, frozenset(frozen))
    idle = {name for op in trace.ops if op.name in frozen for name in op.reads
            if trace.tensor[name].role == "optimizer_state"}  # fmt: skip
    backward = {name for op in after.ops if op.phase.startswith("backward") for name in op.reads}
    tensors = tuple(
        replace(t, saved=False) if t.saved and t.name not in backward else t
        for t in after.tensors if t.name not in idle or after.readers.get(t.name)
    )  # fmt: skip
    for layer in dict.fromkeys(op.layer for op in trace.ops if op.name in frozen):
        notes.match(layer, "frozen")
    for op in trace.ops:
        if _is_batch_norm(op) and op.name not in given and parameters.intersection(op.reads):
            notes.leave(op.layer, "keeps its batch statistics")
    notes.skipped_macs += sum(op.macs for op in trace.ops if op.name not in after.op)
    return replace(after, tensors=tensors)


def _with_given_statistics(trace: Trace, frozen: AbstractSet[str]) -> dict[str, Op]:
    """Batch norms whose parameters are all frozen, forward and backward, as they run on given statistics."""
    given: dict[str, Op] = {}
    older = {new: old for old, new in successors(trace).items()}
    for op in trace.ops:
        if not _is_batch_norm(op):
            continue
        own = [name for name in op.reads if trace.tensor[name].role == "param"]
        reads = tuple(_first(name, older) for name in op.reads)  # a shared norm reads what its first use has written
        running = [name for name in reads if trace.tensor[name].role == "buffer"]
        backward = [r for r in trace.readers.get(op.writes[1], ()) if isinstance(r.nest, Norm)]
        if not running or not own or not frozen >= {*own}:
            continue
        given[op.name] = replace(op, reads=reads, writes=op.writes[:1])
        for reader in backward:
            gradients = [name for name in reader.writes if trace.tensor[name].role == "gradient"]
            if gradients:  # gx = gy · weight / sqrt(variance + epsilon): one factor per channel
                nest = Elementwise("mul", trace.tensor[op.writes[0]].elements)
                reads = (reader.reads[0], own[0], running[-1])
                given[reader.name] = replace(reader, nest=nest, reads=reads, writes=tuple(gradients))
    return given


def _first(name: str, older: Mapping[str, str]) -> str:
    """The version of a running statistic that exists before the step."""
    while name in older:
        name = older[name]
    return name


def _is_batch_norm(op: Op) -> bool:
    """Is this a forward batch norm that takes the statistics of its batch?"""
    nest = op.nest
    return op.phase == "forward" and isinstance(nest, Norm) and nest.function == "batch" and len(op.writes) > 1
