"""The products of a step and what they belong to, for strategies that choose widths."""

from __future__ import annotations

from collections.abc import Container, Mapping

from jouletrace.errors import RewriteError
from jouletrace.trace.model import Conv, Elementwise, Gemm, Loss, Norm, Op, Trace, Update

__all__ = ["aside", "beside", "edges", "has_integer_products", "layers", "parameters_of", "products", "require_wide",
           "unique"]  # fmt: skip


def products(trace: Trace) -> tuple[Op, ...]:
    """The convolutions and matrix products of the network, in trace order, without those that stand aside."""
    left = aside(trace)
    return tuple(op for op in trace.ops if isinstance(op.nest, Conv | Gemm) and op.name not in left)


def aside(trace: Trace) -> frozenset[str]:
    """Ops of layers from which no data goes to a loss, such as gates that decide; precision leaves them alone.

    Nothing stands aside in a step that has no loss.
    """
    forward = [op for op in trace.ops if op.phase == "forward"]
    wanted = {name for op in forward if isinstance(op.nest, Loss) for name in op.reads}
    if not wanted:
        return frozenset()
    serving: set[str] = set()
    for op in reversed(forward):
        if isinstance(op.nest, Loss) or not wanted.isdisjoint(op.writes):
            wanted.update(op.reads)
            serving.add(op.layer)
    others = {op.layer for op in forward} - serving
    return frozenset(op.name for op in trace.ops if op.layer in others)


def parameters_of(trace: Trace) -> Mapping[str, str]:
    """Product -> the parameter that it multiplies by, or whose gradient it computes; none for two activations."""
    updated = {op.reads[1]: op.reads[0] for op in trace.ops if isinstance(op.nest, Update)}
    found: dict[str, str] = {}
    for op in products(trace):
        given = [name for name in op.reads[:2] if trace.tensor[name].role == "param"]
        result = op.writes[0]
        while not given and result is not None:
            given = [updated[result]] if result in updated else []
            readers = trace.readers.get(result, ())
            sums = [r for r in readers if r.phase == "backward_weight" and r.kind == "elementwise"]
            result = sums[0].writes[0] if sums else None
        if given:
            found[op.name] = given[0]
    return found


def layers(trace: Trace) -> Mapping[str, str]:
    """Product -> the layer whose weights it uses: that of the first product with its parameter, else its own."""
    parameters = parameters_of(trace)
    first: dict[str, str] = {}
    for op in products(trace):
        if op.name in parameters:
            first.setdefault(parameters[op.name], op.layer)
    return {op.name: first[parameters[op.name]] if op.name in parameters else op.layer for op in products(trace)}


def edges(trace: Trace) -> frozenset[str]:
    """The products of the stem (which read data), of 1×1 shortcuts and of the classifier (the last forward product).

    A 1×1 shortcut reads what another op reads, too, and its result goes into an addition, over norms at most.
    """
    forward = [op for op in products(trace) if op.phase == "forward"]
    parameters = parameters_of(trace)
    at_edge = {op.name for op in forward if any(trace.tensor[t].role == "input" for t in op.reads[:2])}
    at_edge |= {op.name for op in forward[-1:]} | {op.name for op in forward if _is_shortcut(trace, op)}
    weights = {parameters[name] for name in at_edge if name in parameters}
    return frozenset(at_edge | {name for name, parameter in parameters.items() if parameter in weights})


def _is_shortcut(trace: Trace, op: Op) -> bool:
    if not (isinstance(op.nest, Conv) and op.nest.R == op.nest.S == 1):
        return False
    if not any(r is not op and r.phase == "forward" for r in trace.readers[op.reads[0]]):
        return False
    result: str = op.writes[0]
    while True:
        readers = [r for r in trace.readers.get(result, ()) if r.phase == "forward"]
        if len(readers) != 1:
            return False
        if not isinstance(readers[0].nest, Norm):
            return isinstance(readers[0].nest, Elementwise) and readers[0].nest.function == "add"
        result = readers[0].writes[0]


def has_integer_products(trace: Trace) -> bool:
    """Does any product multiply integers already?"""
    return any(trace.tensor[name].format == "int" for op in products(trace) for name in op.reads[:2])


def require_wide(strategy: str, trace: Trace) -> None:
    """Raises RewriteError if the step is quantised already."""
    if has_integer_products(trace):
        before = ", ".join(entry.strategy for entry in trace.header.rewrites) or "its capture"
        raise RewriteError(f"{strategy}: the operands of {trace.header.name} are integers already (by {before}); "
                           "apply it to the step without that")  # fmt: skip


# -- names


def beside(op: str, what: str) -> str:
    """The name of an op that serves another one.

    >>> beside("layer1.0.relu:forward#2", "quantize")
    'layer1.0.relu.quantize:forward#2'
    """
    stem, colon, rest = op.rpartition(":")
    return f"{stem}.{what}:{rest}" if colon else f"{op}.{what}"


def unique(name: str, taken: Container[str]) -> str:
    """The name, numbered as captures number repeated ones if it is taken.

    >>> unique("fc:forward", {"fc:forward", "fc:forward#2"})
    'fc:forward#3'
    """
    stem, sharp, number = name.rpartition("#")
    stem = stem if sharp and number.isdecimal() else name
    count, result = 1, name
    while result in taken:
        count += 1
        result = f"{stem}#{count}"
    return result
