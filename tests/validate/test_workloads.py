"""From a workload to a step: layer lists, other batches, other types, densities."""

from __future__ import annotations

from pathlib import Path

import pytest

from jouletrace import load_hardware, load_trace
from jouletrace.engine.events import simulate
from jouletrace.errors import UsageError
from jouletrace.mapping.step import map_step
from jouletrace.trace.batch import with_batch
from jouletrace.trace.model import Trace
from jouletrace.validate.measurements import Workload
from jouletrace.validate.workloads import selected, step

HERE = Path(__file__).parent
LENET = [
    {"kind": "conv", "name": "conv1", "out_channels": 32, "in_channels": 3, "rows": 32, "columns": 32, "kernel": 3},
    {"kind": "conv", "name": "conv2", "out_channels": 32, "in_channels": 32, "rows": 16, "columns": 16, "kernel": 3},
    {"kind": "conv", "name": "conv3", "out_channels": 64, "in_channels": 32, "rows": 8, "columns": 8, "kernel": 3},
    {"kind": "fc", "name": "fc1", "out_features": 64, "in_features": 1024},
]


def made(**fields: object) -> Trace:
    return step(Workload.model_validate(fields), HERE, None)


def test_layers_of_a_list_are_the_products_of_the_trace() -> None:
    listed, trace = made(layers=LENET, batch=128), load_trace("lenet10-cifar10-b128")
    for op in listed.ops:
        same = trace.op[op.name]
        assert (op.nest, op.macs, op.phase, op.layer) == (same.nest, same.macs, same.phase, same.layer)
    assert [op.name for op in listed.ops if op.layer == "conv1"] == ["conv1:forward", "conv1:backward_weight"]


@pytest.mark.parametrize("phase", ["forward", "backward_data", "backward_weight"])
def test_a_layer_of_a_list_takes_the_cycles_of_the_same_layer_in_a_trace(phase: str) -> None:
    zcu102 = load_hardware("eftrain-zcu102")
    listed, trace = made(layers=LENET, batch=2), with_batch(load_trace("lenet10-cifar10-b128"), 2)
    name = f"conv2:{phase}"
    cycles = [simulate(map_step(t, zcu102, ops=(t.op[name],))).cycles for t in (listed, trace)]
    assert cycles[0] == cycles[1] > 0


def test_strided_and_grouped_layers_by_the_size_of_their_output() -> None:
    layer = {
        "kind": "conv", "name": "c", "out_channels": 96, "in_channels": 4, "rows": 55, "columns": 55, "kernel": 11,
        "stride": 4, "padding": 0, "groups": 2,
    }  # fmt: skip
    op = made(layers=[layer], batch=1, inference=True).ops[0]
    assert (op.nest.IY, op.nest.G, op.nest.C, op.macs) == (227, 2, 2, 55 * 55 * 11 * 11 * 96 * 2)


def test_copies_are_made_once_between_the_products_of_a_list() -> None:
    listed = made(layers=[LENET[0], {"kind": "copy", "name": "reorder", "elements": 10}, LENET[1]], batch=4)
    assert [op.name for op in listed.ops] == [
        "conv1:forward", "reorder:forward", "conv2:forward", "conv2:backward_data", "conv2:backward_weight",
        "conv1:backward_weight",
    ]  # fmt: skip
    counts = simulate(map_step(listed, load_hardware("eftrain-zcu102"), ops=(listed.op["reorder:forward"],)))
    moved = {action: n for (component, action, _), n in counts.ops[0].counts.items() if component == "dram"}
    assert (moved["read"], moved["write"]) == (4 * 10 * 4, 4 * 10 * 4)


def test_inference_precision_and_densities() -> None:
    trace = made(
        trace="lenet10-cifar10-b128", batch=2, inference=True, precision="int16",
        densities=[{"layer": "conv2", "value": 0.4, "where": "Table 3"}],
    )  # fmt: skip
    assert {op.phase for op in trace.ops} == {"forward"}
    assert trace.bits_read(trace.op["conv2:forward"]) == (16, 16)
    assert trace.tensor[trace.op["conv2:forward"].reads[0]].density == (2, 5)
    with pytest.raises(UsageError, match="no layer 'conv22'; did you mean 'conv2'"):
        made(trace="lenet10-cifar10-b128", densities=[{"layer": "conv22", "value": 0.4, "where": "Table 3"}])


def test_what_a_convolution_writes_is_as_dense_as_what_its_pooling_layer_reads() -> None:
    """conv1 -> relu1 -> pool1 -> conv2: relu1's output is read by pool1 alone, pool1's by conv2."""
    densities = [{"layer": "pool1", "value": 0.6, "where": "assumed"}, {"layer": "conv2", "value": 0.25, "where": "Table V"}]
    trace = made(trace="alexnet-eyeriss-b4", inference=True, densities=densities)
    found = {t.name: t.density for t in trace.tensors if t.density != (1, 1)}
    assert found == {"relu1.relu:forward.y": (3, 5), "pool1.max:forward.y": (1, 4)}


def test_a_selector_takes_everything_below_a_layer_and_names_of_the_citation() -> None:
    trace = load_trace("resnet20-cifar10-b32")
    workload = Workload.model_validate({"trace": "resnet20-cifar10-b32", "names": {"Block 2": "layer1.1"}})
    found = selected(trace, workload, ("Block 2",), ("forward",), ("conv",))
    assert [op.name for op in found] == ["layer1.1.conv1:forward", "layer1.1.conv2:forward"]
    both = selected(trace, workload, ("conv1", "fc"), ("forward",), ())
    assert [op.layer for op in both] == ["conv1", "fc"]
