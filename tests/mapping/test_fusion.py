"""Fusion: before and after, why an op does not ride, and what riding saves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.capture.zoo import zoo
from jouletrace.hardware.spec import Hardware, Host
from jouletrace.mapping.fusion import NO_FUSION, plan_fusion
from jouletrace.mapping.memory import SWITCH
from jouletrace.trace.model import Conv, Elementwise, Gate, Header, Nest, Norm, Op, Reduce, Tensor, Trace

from .vector_bench import counted, run, tensor, toy, traffic

FUSING = toy(fuses=("relu", "add", "relu_backward"))
E = 32
CONV = Conv(1, 2, 2, 4, 4, 1, 1, 1, 4, 4)


def step(*lines: str, after: dict[str, str] | None = None, **tensors: Tensor) -> Trace:
    """A trace from lines such as ``conv: x w -> y``; the op's name up to a digit is its function."""
    ops: list[Op] = []
    names: dict[str, None] = {}
    for line in lines:
        name, _, rest = line.partition(": ")
        reads, writes = (part.split() for part in rest.split("->"))
        names |= dict.fromkeys((*reads, *writes))
        function = name.rstrip("0123456789")
        nest: Nest = Elementwise(function, E)
        nest = {"conv": CONV, "batch": Norm("batch", E, 2), "sum": Reduce("sum", E, E)}.get(function, nest)
        waits = ((after or {}).get(name, ""),) if name in (after or {}) else ()
        ops.append(Op(name, "forward", "", nest, tuple(reads), tuple(writes), after=waits))
    values = tuple(tensors.get(name, tensor(name, E)) for name in names)
    return Trace(Header("toy", 1), values, tuple(ops))


def rides(trace: Trace, hardware: Hardware = FUSING) -> dict[str, str]:
    return dict(plan_fusion(trace, hardware).hosts)


def miss(trace: Trace, op: str, hardware: Hardware = FUSING) -> str:
    plan = plan_fusion(trace, hardware)
    assert op not in plan.hosts
    return plan.misses[op]


# -- before and after


def test_relu_rides_on_the_convolution() -> None:
    """conv -> y -> DRAM -> relu -> z becomes conv -> relu -> z, stored by the convolution."""
    trace = step("conv: x w -> y", "relu: y -> z")
    plan = plan_fusion(trace, FUSING)
    assert plan.hosts == {"relu": "conv"}
    assert plan.on_chip_reads == {("relu", "y")}
    assert plan.on_chip_writes == {("relu", "z")}
    assert plan.writes_dram("conv", "y")
    assert plan.reads_dram("conv", "x")


def test_a_block_ends_in_one_chain() -> None:
    """norm -> add -> relu: the sum and the relu leave as one store; the shortcut is loaded."""
    trace = step("conv: x w -> a", "batch: a -> b", "add: b shortcut -> c", "relu: c -> d")
    assert rides(trace) == {"add": "batch", "relu": "add"}
    assert plan_fusion(trace, FUSING).on_chip_reads == {("add", "b"), ("relu", "c")}


def test_ops_between_host_and_rider_do_not_matter() -> None:
    """The weight gradient of the same layer stands between the convolution and the relu of its result."""
    trace = step("conv: x w -> y", "conv2: x v -> u", "relu: y -> z")
    assert rides(trace) == {"relu": "conv"}


def test_the_last_of_two_writers_is_the_host() -> None:
    """The other summand is in DRAM by then."""
    assert rides(step("conv: x w -> y", "conv2: x v -> u", "add: y u -> z")) == {"add": "conv2"}


def test_nothing_rides_where_the_hardware_fuses_nothing() -> None:
    plan = plan_fusion(step("conv: x w -> y", "relu: y -> z"), toy())
    assert plan == NO_FUSION


def test_a_plan_is_that_of_all_hardwares_with_its_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused functions, kinds that are left to a host, and the word of the datapath; nothing else is looked at."""
    trace = step("conv: x w -> y", "relu: y -> z", z=replace(tensor("z", E), bits=24))
    plan = plan_fusion(trace, FUSING)
    assert plan_fusion(trace, FUSING.model_copy(update={"clock_hz": 1})) is plan
    assert plan.hosts == {"relu": "conv"}  # 24 bits are stored in words of 32
    narrow = FUSING.model_copy(update={"word_bits": 8})
    assert plan_fusion(trace, narrow).misses == {"relu": "it writes values of another width than y"}
    assert plan_fusion(trace, toy(fuses=("add",))).hosts == {}
    host = Host.model_validate({"clock": "1 GHz", "kinds": ["elementwise"], "cycles_per_element": 1})
    assert "host CPU" in plan_fusion(trace, FUSING.model_copy(update={"host": host})).misses["relu"]
    monkeypatch.setenv(SWITCH, "1")
    alone = plan_fusion(trace, FUSING)
    assert alone is not plan
    assert alone == plan


# -- misses

SAVED = tensor("y", E, saved=True)
RESULT = tensor("y", E, role="weight_gradient")
LATE = {"relu": "sum"}


@pytest.mark.parametrize(
    ("trace", "op", "reason"),
    [
        (step("relu: x -> y"), "relu", "nothing that it reads is written in this step"),
        (step("sum: x -> y", "relu: y -> z"), "relu", "sum is of kind reduce, which carries no rider"),
        (step("conv: x w -> y", "relu: y -> z", "mul: y -> u"), "relu", "y is also read by mul"),
        (step("conv: x w -> y", "relu: y -> z", y=SAVED), "relu", "y is saved for backward"),
        (step("mul: x -> y", "relu: y -> z", y=RESULT), "relu", "has the role weight_gradient, which stays"),
        (step("conv: x w -> y", "add: y y2 -> z", z=tensor("z", 2 * E)), "add", "does not read y one to one"),
        (step("batch: x -> y u", "add: y u -> z"), "add", "reads 2 results of batch"),
        (step("conv: x w -> y", "sum: x -> s", "relu: y -> z", after=LATE), "relu", "waits for sum"),
    ],
)
def test_a_miss_has_a_reason(trace: Trace, op: str, reason: str) -> None:
    assert reason in miss(trace, op)


def test_a_result_of_another_width_is_a_miss() -> None:
    narrow = replace(tensor("z", E), bits=8)
    assert "another width" in miss(step("conv: x w -> y", "relu: y -> z", z=narrow), "relu", toy(fuses=("relu",), word_bits=8))


def test_only_pairs_that_are_both_selected_ride() -> None:
    trace = step("conv: x w -> y", "relu: y -> z")
    assert plan_fusion(trace, FUSING, trace.ops[1:]).hosts == {}


def test_another_gate_is_a_miss() -> None:
    trace = step("conv: x w -> y", "relu: y -> z")
    gated = replace(trace.ops[1], gate=Gate("block", "layer1.0"))
    assert "different gates" in miss(replace(trace, ops=(trace.ops[0], gated)), "relu")
    both = tuple(replace(op, gate=Gate("block", "layer1.0")) for op in trace.ops)
    assert rides(replace(trace, ops=both)) == {"relu": "conv"}


def test_the_host_cpu_takes_no_riders() -> None:
    hardware = toy(fuses=("relu",), host=("elementwise",))
    assert "left to the host CPU" in miss(step("conv: x w -> y", "relu: y -> z"), "relu", hardware)


# -- what it saves


def test_a_rider_only_computes() -> None:
    """mul, then relu. Unfused the intermediate is stored and loaded; fused the relu moves nothing."""
    trace = step("mul: x -> y", "relu: y -> z")
    plan = plan_fusion(trace, FUSING)
    apart, fused = run(trace, FUSING), run(trace, FUSING, plan)
    assert traffic(apart) == (2 * 4 * E, 2 * 4 * E)
    assert traffic(fused) == (4 * E, 4 * E)
    assert counted(fused, "vector") == counted(apart, "vector") == {"mul_fp32": E, "compare_fp32": E}
    assert counted(fused, "buffer.vector")["read"] == counted(apart, "buffer.vector")["read"] - E // 2
    assert fused.counts.cycles < apart.counts.cycles
    # x is loaded and the result stored in 4 chunks of one run each; this bench starts the relu when mul has ended
    fused.assert_busy("dma input", [(0, 13), (13, 21), (21, 29), (29, 37)])
    fused.assert_busy("dma output", [(15, 28), (28, 36), (36, 44), (44, 52)])
    mul, relu = [(13, 15), (21, 23), (29, 31), (37, 39)], [(52, 54), (54, 56), (56, 58), (58, 60)]
    fused.assert_busy("vector", mul + relu)


CHAIN = st.lists(st.sampled_from(["relu", "mul", "add"]), min_size=1, max_size=6)


@given(CHAIN, st.integers(1, 3))
def test_fused_never_moves_more(functions: list[str], copies: int) -> None:
    """A chain of elementwise ops: each rider saves its load and its host's store, exactly."""
    lines = [f"{f}{i}: t{i}{' s' if f == 'add' else ''} -> t{i + 1}" for i, f in enumerate(functions)]
    trace = step(*lines)
    hardware = toy(copies=copies, fuses=("relu", "add"))
    plan = plan_fusion(trace, hardware)
    assert len(plan.hosts) == sum(f != "mul" for f in functions[1:])
    apart, fused = run(trace, hardware), run(trace, hardware, plan)
    saved = 4 * E * len(plan.hosts)
    assert traffic(fused) == tuple(n - saved for n in traffic(apart))
    assert counted(fused, "vector") == counted(apart, "vector")
    assert fused.counts.cycles <= apart.counts.cycles
    assert all(fused.counts.total().get(a, 0) <= n for a, n in apart.counts.total().items())


@pytest.mark.parametrize("name", ["resnet20-cifar10", "lenet10-cifar10"])
def test_every_relu_of_a_network_rides_once(name: str) -> None:
    """Forward each relu follows a norm, a sum or a convolution that only it reads."""
    trace = zoo(name, batch=2)
    plan = plan_fusion(trace, toy(fuses=("relu",)))
    relus = [op.name for op in trace.ops if isinstance(op.nest, Elementwise) and op.nest.function == "relu"]
    assert sorted(plan.hosts) == sorted(relus)
    assert len(set(plan.hosts.values())) == len(plan.hosts)
    assert not plan.misses
