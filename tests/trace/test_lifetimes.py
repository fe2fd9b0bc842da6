"""Lifetimes and memory against a simulation that writes and frees tensor by tensor, and against known figures."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given

from jouletrace.capture.zoo import zoo
from jouletrace.testing import traces
from jouletrace.trace.check import is_final
from jouletrace.trace.graph import successors
from jouletrace.trace.lifetimes import Lifetime, Peak, lifetimes, peak_memory, saved_for_backward_bytes
from jouletrace.trace.model import Elementwise, Header, Op, Tensor, Trace, Update


def simulated_peak(trace: Trace) -> Peak:
    """The peak by allocating and freeing: a memory of tensors, walked op by op."""
    following = successors(trace)
    old_of = {new: old for old, new in following.items()}
    reads_left = {t.name: sum(t.name in op.reads for op in trace.ops) for t in trace.tensors}
    memory = {t.name for t in trace.tensors if t.name not in trace.writer}
    best = Peak(sum(trace.tensor[n].size_bytes for n in memory), None)
    for index, op in enumerate(trace.ops):
        for name in dict.fromkeys(op.reads):
            reads_left[name] -= 1
        in_place = {n for n in op.writes if n in old_of and old_of[n] in op.reads and not reads_left[old_of[n]]}
        memory |= set(op.writes) - in_place
        size = sum(trace.tensor[n].size_bytes for n in memory)
        if size > best.size_bytes or index == 0:
            best = Peak(size, op.name)
        memory |= in_place
        for name in list(memory):
            tensor = trace.tensor[name]
            given_before = name not in trace.writer
            temporary = not given_before and (tensor.role == "buffer" or not is_final(trace, tensor))
            kept = is_final(trace, tensor) and name not in trace.readers
            if not reads_left[name] and ((temporary and not kept) or name in following):
                memory.discard(name)
    return best


@given(traces(gates=True))
def test_peak_equals_a_simulation(trace: Trace) -> None:
    assert peak_memory(trace) == simulated_peak(trace)


@given(traces())
def test_lifetimes_cover_every_use(trace: Trace) -> None:
    spans = lifetimes(trace)
    assert set(spans) == set(trace.tensor)
    replaced = set(successors(trace).values())
    for index, op in enumerate(trace.ops):
        assert all(spans[name].first <= index <= spans[name].last for name in op.reads)
        assert all(spans[name].first == index + (name in replaced) for name in op.writes)
    for tensor in trace.tensors:
        if tensor.role == "param" and tensor.name not in trace.readers:
            assert spans[tensor.name].last == len(trace.ops)


def sgd(late_reader: bool) -> Trace:
    """One parameter, its update, and an op that may read the old version after it."""
    w, g, new = (Tensor(n, (8,), 32, "fp", r) for n, r in (("w", "param"), ("x", "input"), ("w2", "param")))
    y = Tensor("y", (8,), 32, "fp", "buffer")
    update = Op("w:update", "update", "", Update("sgd", 8, 2), ("w", "x"), ("w2",))
    late = Op("late", "update", "", Elementwise("copy", 8), ("w",) if late_reader else ("x",), ("y",))
    return Trace(Header("sgd", 1), (w, g, new, y), (update, late))


def test_an_update_is_in_place_unless_the_old_version_is_still_read() -> None:
    spans = {"w": Lifetime(-1, 0), "x": Lifetime(-1, 2), "w2": Lifetime(1, 2), "y": Lifetime(1, 2)}
    assert lifetimes(sgd(False)) == spans
    assert lifetimes(sgd(True))["w"] == Lifetime(-1, 1)
    assert lifetimes(sgd(True))["w2"] == Lifetime(0, 2)
    # Eight fp32 values are 32 bytes: w, x and y; with the late reader also the second w.
    assert peak_memory(sgd(False)) == Peak(96, "late")
    assert peak_memory(sgd(True)) == Peak(128, "late")
    assert peak_memory(replace(sgd(False), tensors=sgd(False).tensors[:2], ops=())) == Peak(64, None)


def test_saved_activations_of_resnet74() -> None:
    """721.5 MB at batch 128, which is also what PyTorch's saved_tensors_hooks count for this network.

    Per image the output of every convolution is kept for its norm, and the result of every relu: 25 of each
    in the first stage, 24 in the others; then the pooled features and the log-probabilities. 4 bytes each.
    """
    trace = zoo("resnet74-identity-cifar10", 128)
    values = 50 * 16 * 32 * 32 + 48 * 32 * 16 * 16 + 48 * 64 * 8 * 8 + 64 + 10
    assert saved_for_backward_bytes(trace) == 128 * values * 4 == 721_458_176
    peak = peak_memory(trace)
    assert peak.size_bytes > saved_for_backward_bytes(trace)
    assert peak.op is not None
    assert trace.op[peak.op].phase == "backward_data"  # the first op after the whole forward pass


def test_narrow_formats_are_counted_in_bits() -> None:
    x = Tensor("x", (3,), 1, "sign", "activation", saved=True)
    mask = Tensor("m", (9,), 1, "sign", "mask", saved=True)
    weight = Tensor("w", (9,), 32, "fp", "param", saved=True)
    assert saved_for_backward_bytes(Trace(Header("t", 1), (x, mask, weight), ())) == 1 + 2
