"""MACs, bit-operations and effective MACs, held against the arithmetic of the publications."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from jouletrace import load_trace
from jouletrace.strategies.base import apply
from jouletrace.strategies.int8 import Int8Training
from jouletrace.trace.counting import bit_operations, bit_operations_of, effective_macs, macs, macs_by_phase
from jouletrace.trace.model import Attention, Header, Op, Tensor, Trace
from jouletrace.trace.run import DROPPED, Run
from jouletrace.trace.units import gated, residual_units

STEP = load_trace("resnet20-cifar10-b32")


def training(*steps: Trace, step_of: list[int], units: tuple[str, ...] = (), samples: object = None) -> Run:
    rows = np.zeros((len(step_of), 0), dtype=np.int32) if samples is None else np.array(samples, dtype=np.int32)
    return Run("training", steps, np.array(step_of, dtype=np.int32), units, rows)


def test_full_width_products_count_once() -> None:
    assert bit_operations(STEP) == STEP.macs * 1024
    assert effective_macs(STEP) == macs(STEP) == STEP.macs


def test_static_8_bits_are_a_sixteenth() -> None:
    # FracTrain: 64,000 × 128 samples of ResNet-38 in 8 bits are 1.279e14 effective MACs, 3·MAC/16 of forward each.
    step = load_trace("resnet38-cifar10-b128")
    eight = apply(Int8Training(gradient=8), step).value
    assert effective_macs(eight) == Fraction(step.macs, 16)
    forward = macs_by_phase(step)["forward"]
    published = Fraction(3 * forward, 16) * 64_000
    assert float(published) == pytest.approx(1.279e14, rel=5e-4)
    stem = step.op["conv1:forward"].macs  # has no backward-data
    assert effective_macs(training(eight, step_of=[0] * 64_000)) == published - Fraction(stem, 16) * 64_000


def test_phases_add_up() -> None:
    phases = macs_by_phase(STEP)
    assert list(phases) == ["forward", "backward_data", "backward_weight", "update"]
    assert sum(phases.values()) == STEP.macs
    assert phases["forward"] == phases["backward_weight"] == 40_813_184 * 32
    assert phases["forward"] - phases["backward_data"] == STEP.op["conv1:forward"].macs


def test_fetched_bits_count_not_stored_ones() -> None:
    name = "layer1.0.conv1:forward"
    ops = tuple(replace(op, read_bits=(4, 10)) if op.name == name else op for op in STEP.ops)
    part = replace(STEP, ops=ops)
    assert bit_operations_of(part, part.op[name]) == STEP.op[name].macs * 40


def test_a_product_of_some_results_counts_those() -> None:
    name = "layer1.0.conv1:backward_weight"
    ops = tuple(replace(op, write_elements=(1,)) if op.name == name else op for op in STEP.ops)
    assert STEP.macs - macs(replace(STEP, ops=ops)) == STEP.op[name].macs * 2303 // 2304


def test_fused_attention_counts_both_products() -> None:
    q, k, v, y = (Tensor(n, (2, 4, 8), b, "fp", "activation") for n, b in zip("qkvy", (16, 8, 4, 32), strict=True))
    op = Op("attention:forward", "forward", "", Attention(2, 4, 4, 8), ("q", "k", "v"), ("y",))
    trace = Trace(Header("attention", 2), (q, k, v, y), (op,))
    assert bit_operations(trace) == 2 * 4 * 4 * 8 * (16 * 8 + 16 * 4)


def test_of_a_training_every_executed_iteration_counts() -> None:
    eight = apply(Int8Training(), STEP).value
    run = training(STEP, eight, step_of=[0, DROPPED, 1, 1])
    assert macs(run) == 3 * STEP.macs
    assert bit_operations(run) == bit_operations(STEP) + 2 * bit_operations(eight)


def test_units_count_by_the_samples_that_ran_them() -> None:
    units = residual_units(STEP)
    marked = gated(STEP, units)
    names = tuple(unit.name for unit in units)
    samples = np.full((4, len(names)), 32, dtype=np.int32)
    samples[0, 2], samples[1, :], samples[2, 5], samples[3, 0] = 8, 0, 31, 7
    run = training(marked, step_of=[0, 0, 0, DROPPED], units=names, samples=samples)
    executed = [run.step(i) for i in range(3)]
    assert macs(run) == sum(step.macs for step in executed if step is not None)
    assert bit_operations(run) == sum(bit_operations(step) for step in executed if step is not None)


@pytest.mark.parametrize(("skip", "saving"), [("0.2", 80.27), ("0.4", 85.20), ("0.6", 90.13)])
def test_the_product_rule_of_e2_train(skip: str, saving: float) -> None:
    # 1 - (2/3)·(1 - s)·0.37: a sixth of the iterations of nine, a share of samples in the unit, and cheaper products.
    # Here as a count: two thirds of the iterations, all MACs in one unit, widths that cost 0.37 of 32 × 32.
    x, w, y = (Tensor(n, s, 32, "int", r) for n, s, r in
               (("x", (10, 100), "input"), ("w", (100, 1), "param"), ("y", (10, 1), "activation")))  # fmt: skip
    from jouletrace.trace.model import Gate, Gemm

    full = Op("fc:forward", "forward", "fc", Gemm(1, 10, 1, 100), ("x", "w"), ("y",), gate=Gate("block", "fc"))
    wide = Trace(Header("fc", 10), (x, w, y), (full,))
    narrow = Trace(Header("fc", 10), (replace(x, bits=37), replace(w, bits=32), y), (full,))
    base = training(wide, step_of=[0] * 300, units=("fc",), samples=[[10]] * 300)
    ran = 10 - int(Fraction(skip) * 10)
    cheap = training(narrow, step_of=[0, 0, DROPPED] * 100, units=("fc",), samples=[[ran]] * 300)
    # 37 × 32 bits are 1.15625 of 32 × 32; of 100 × 32 they are 0.37.
    remaining = Fraction(bit_operations(cheap), bit_operations(base)) * Fraction(32, 100)
    assert remaining == Fraction(2, 3) * (1 - Fraction(skip)) * Fraction(37, 100)
    assert float(100 * (1 - remaining)) == pytest.approx(saving, abs=0.005)
