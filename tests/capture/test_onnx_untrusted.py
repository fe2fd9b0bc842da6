"""ONNX files that lie, point elsewhere, or are broken: every one ends in a sentence, none in a surprise."""

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the import of ONNX files needs the onnx package")

from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from jouletrace.capture import onnx as importer
from jouletrace.capture import onnx_ops
from jouletrace.capture.onnx import capture_onnx
from jouletrace.errors import CaptureError, JouletraceError, LimitExceeded, UsageError

from .onnx_files import integers, model, residual_net, save, weight

node = helper.make_node


@pytest.mark.parametrize("place", ["weights.bin", "../../etc/passwd", "/etc/passwd"])
def test_external_data_is_refused_and_not_opened(tmp_path: Path, place: str) -> None:
    proto = residual_net()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(CaptureError, match=rf"'stem.weight' keeps its data in '{place}'; no other file is opened"):
        capture_onnx(save(tmp_path, proto), batch=2)


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"missing\.onnx: cannot be read: No such file"):
        capture_onnx(tmp_path / "missing.onnx")
    with pytest.raises(CaptureError, match="is not a file"):
        capture_onnx(tmp_path)
    for content in (b"", b"\x00" * 100, b"not a model", b"\x3a\x7f"):
        path = tmp_path / "odd.onnx"
        path.write_bytes(content)
        with pytest.raises(CaptureError, match="ONNX file"):
            capture_onnx(path)


def test_stated_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, residual_net())
    with monkeypatch.context() as patch:
        patch.setattr(importer, "MAX_FILE_BYTES", 100)
        with pytest.raises(LimitExceeded, match="bytes are more than the 100"):
            capture_onnx(path, batch=2)
    with monkeypatch.context() as patch:
        patch.setattr(importer, "MAX_NODES", 7)
        with pytest.raises(LimitExceeded, match="8 nodes are more than 7"):
            capture_onnx(path, batch=2)
    with pytest.raises(LimitExceeded, match="more than 1099511627776 elements"):
        capture_onnx(path, batch=2**40)


def test_a_recurrent_layer_cannot_explode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = [node("LSTM", ["x", "W", "R"], ["y"], hidden_size=2, name="rnn")]
    path = save(tmp_path, model(net, {"x": [10**9, 1, 3]}, [weight("W", 1, 8, 3), weight("R", 1, 8, 2)]))
    with pytest.raises(LimitExceeded, match="'rnn' has 1000000000 time steps"):
        capture_onnx(path)
    assert onnx_ops.MAX_OPS == 1_000_000


def test_large_constants_are_not_computed(tmp_path: Path) -> None:
    """ConstantOfShape and Range could fill the memory from a few bytes."""
    net = [
        node("ConstantOfShape", ["huge"], ["c"]), node("Range", ["start", "end", "step"], ["r"]),
        node("Reshape", ["c", "flat"], ["f"]), node("Add", ["r", "one"], ["s"]), node("MatMul", ["x", "w"], ["y"]),
    ]  # fmt: skip
    scalars = [helper.make_tensor(n, TensorProto.INT64, [], [v]) for n, v in
               (("start", 0), ("end", 10**12), ("step", 1), ("one", 1))]  # fmt: skip
    weights = [integers("huge", 10**6, 10**5), integers("flat", -1), weight("w", 4, 3), *scalars]
    step = capture_onnx(save(tmp_path, model(net, {"x": [2, 4]}, weights)))
    assert [op.kind for op in step.ops if op.phase == "forward"] == ["gemm", "loss"]


def test_graphs_within_graphs_are_refused(tmp_path: Path) -> None:
    inner = helper.make_graph([node("Identity", ["x"], ["z"])], "inner", [], [
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 4])
    ])  # fmt: skip
    net = [node("If", ["flag"], ["y"], name="branch", then_branch=inner, else_branch=inner)]
    flag = helper.make_tensor("flag", TensorProto.BOOL, [], [True])
    path = save(tmp_path, model(net, {"x": [2, 4]}, [flag]))
    for approximate in (None, "elementwise"):
        with pytest.raises(CaptureError, match="node 'branch': If holds a graph of its own"):
            capture_onnx(path, approximate=approximate)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    net = [node("MatMul", ["x", "w"], ["y"])]
    with pytest.raises(CaptureError, match="shapes do not fit together"):
        capture_onnx(save(tmp_path, model(net, {"x": [2, 5]}, [weight("w", 4, 3)])))
    with pytest.raises(CaptureError, match="reads 'nothing', which nothing writes|do not fit together"):
        capture_onnx(save(tmp_path, model([node("Relu", ["nothing"], ["y"])], {"x": [2, 4]}, [])))
    proto = residual_net()
    proto.graph.initializer[0].dims[0] = -3
    with pytest.raises(CaptureError, match=r"impossible shape \[-3, 3, 3, 3\]"):
        capture_onnx(save(tmp_path, proto), batch=2)


def test_shape_that_depends_on_data(tmp_path: Path) -> None:
    net = [node("NonZero", ["x"], ["i"]), node("Cast", ["i"], ["f"], to=1), node("Relu", ["f"], ["y"])]
    with pytest.raises(CaptureError, match="depends on data"):
        capture_onnx(save(tmp_path, model(net, {"x": [2, 4]}, [])), approximate="elementwise")


def test_a_file_without_parameters_or_output(tmp_path: Path) -> None:
    constant = model([node("Constant", [], ["y"], value_floats=[1.0, 2.0])], {"x": [2, 4]}, [])
    with pytest.raises(CaptureError, match="output 'y' does not depend on the inputs"):
        capture_onnx(save(tmp_path, constant))


def test_unknown_approximation(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="approximate is 'all'"):
        capture_onnx(tmp_path / "net.onnx", approximate="all")  # type: ignore[arg-type]


def test_names_and_types_that_are_none(tmp_path: Path) -> None:
    content = residual_net().SerializeToString()
    path = tmp_path / "net.onnx"
    path.write_bytes(content.replace(b"stem.weight", b"stem\xffweight"))
    with pytest.raises(CaptureError, match="some of its names are no text"):
        capture_onnx(path, batch=2)
    proto = residual_net()
    proto.graph.initializer[1].data_type = 106
    with pytest.raises(CaptureError, match=r"tensor 'bn.weight' cannot be read|do not fit together"):
        capture_onnx(save(tmp_path, proto), batch=2)
    scalar = model([node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": [2, 4]}, [])
    with pytest.raises(CaptureError, match="output 'y' has no classes"):
        capture_onnx(save(tmp_path, scalar))


_VALID = residual_net().SerializeToString()
_PLACES = [i for i, byte in enumerate(_VALID) if byte]  # not the zeros of the weights


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.sampled_from(_PLACES), st.integers(0, 255)), max_size=4),
    st.one_of(st.just(0), st.integers(0, 200)),
)
def test_damaged_files_end_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(_VALID)
    for place, value in damage:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content[: len(content) - cut])
    try:
        capture_onnx(path, batch=2, approximate="elementwise")
    except JouletraceError as refused:
        assert all(str(problem) for problem in refused.problems)
