"""Small steps, op by op: what is recorded, what is stripped, what is fused, and which roles tensors get."""

from collections import Counter
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="capture tests need PyTorch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from jouletrace.capture.recipe import load_recipe  # noqa: E402
from jouletrace.capture.torch import _Session, capture_step  # noqa: E402
from jouletrace.trace.check import problems  # noqa: E402
from jouletrace.trace.model import Copy, Gather, Gemm, Norm, Pool, Rng, Scatter, Trace, Update  # noqa: E402


def square(y: Tensor) -> Tensor:
    return functional.mse_loss(y, torch.zeros_like(y))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def capture(
    build: Callable[[], nn.Module], shape: tuple[int, ...], loss: Callable[[Tensor], Tensor] = square,
    optimizer=sgd, before_update: Callable[[nn.Module], object] = lambda model: None, batch: int = 4,
) -> Trace:  # fmt: skip
    """A step of a small network; whole numbers as input if the shape says so by a leading 0."""

    def recipe(batch: int):
        model = build()
        rule = optimizer(model.parameters())
        x = torch.randint(5, (batch, *shape[1:])) if shape[0] == 0 else torch.randn(batch, *shape)

        def step() -> None:
            rule.zero_grad()
            loss(model(x)).backward()
            before_update(model)
            rule.step()

        return model, step

    trace = capture_step(recipe, batch)
    assert problems(trace) == []
    return trace


class Call(nn.Module):
    """A network that is one function of the output of a linear layer of 16."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.fc = function, nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.fc(x))


def names(trace: Trace) -> list[str]:
    return [op.name for op in trace.ops]


def test_smoke_three_layers() -> None:
    """The whole step of a small network, name by name: the smoke test for a new version of PyTorch."""
    trace = capture(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5)), (3, 8, 8),
        lambda y: functional.cross_entropy(y, torch.zeros(len(y), dtype=torch.int64)),
    )  # fmt: skip
    assert names(trace) == [
        "0:forward", "1.batch:forward", "3:forward", "cross_entropy:forward",
        "cross_entropy:backward_data", "3:backward_data", "3:backward_weight", "3.sum:backward_weight",
        "1.batch:backward_data", "0:backward_weight", "0.sum:backward_weight",
        "0.weight:update", "0.bias:update", "1.weight:update", "1.bias:update", "3.weight:update", "3.bias:update",
    ]  # fmt: skip
    roles = Counter(t.role for t in trace.tensors)
    assert roles == {
        "input": 1, "param": 12, "activation": 5, "gradient": 3, "weight_gradient": 6,
        "buffer": 2 + 4 + 1,  # running statistics; saved and new ones; the constant labels
    }  # fmt: skip
    assert trace.op["3:backward_weight"].nest == Gemm(1, 5, 288, 4, ta=True)
    assert trace.op["1.batch:forward"].nest == Norm("batch", 4 * 8 * 36, 8)
    assert trace.op["1.batch:forward"].writes[3:] == (
        "1.batch:forward.running_mean", "1.batch:forward.running_var",
    )  # fmt: skip
    assert not any("num_batches_tracked" in t.name for t in trace.tensors)


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
     nn.LeakyReLU, nn.ELU, nn.Softplus],
)  # fmt: skip
def test_an_activation_is_one_op_each_way(layer: type[nn.Module]) -> None:
    trace = capture(lambda: nn.Sequential(nn.Linear(8, 16), layer()), (8,))
    forward, backward = (op for op in trace.ops if op.layer == "1")
    assert (forward.kind, forward.phase, backward.kind, backward.phase) == (
        "elementwise", "forward", "elementwise", "backward_data",
    )  # fmt: skip
    assert backward.nest.function == f"{forward.nest.function}_backward"
    assert forward.nest.elements == backward.nest.elements == 64


def functions(trace: Trace) -> dict[str, list[str]]:
    """What pointwise ops do, by phase."""
    found: dict[str, list[str]] = {"forward": [], "backward_data": []}
    for op in trace.ops:
        if op.kind == "elementwise":
            found[op.phase].append(op.nest.function)
    return found


@pytest.mark.parametrize(
    ("function", "forward", "backward"),
    [
        (lambda y: y / y.exp(), "exp div", "div_backward div_backward exp_backward accumulate"),
        (lambda y: y**3, "pow", "pow_backward"),
        (lambda y: (2 - y).sqrt(), "rsub sqrt", "sqrt_backward rsub_backward"),
        (lambda y: y.clamp(0, 1) * 3, "clamp mul", "mul_backward clamp_backward"),
        (lambda y: torch.where(y > 0, y, 0.5), "gt where", "where_backward"),
        (lambda y: y + y, "add", "accumulate"),
        (lambda y: y.abs().log() - 1, "abs log sub", "log_backward abs_backward"),
        (lambda y: y.bfloat16(), "cast", "cast"),
    ],
)
def test_pointwise_work_of_one_autograd_node_is_one_op_per_gradient(function, forward: str, backward: str) -> None:
    found = functions(capture(lambda: Call(function), (8,)))
    assert found == {"forward": forward.split(), "backward_data": backward.split()}


def test_widths_follow_types() -> None:
    trace = capture(lambda: Call(lambda y: y.bfloat16() * (y > 0)), (8,))
    widths = {t.name: (t.bits, t.format, t.role) for t in trace.tensors}
    assert widths["cast:forward.y"] == (16, "fp", "activation")
    assert widths["gt:forward.y"] == (1, "int", "mask")
    assert widths["fc:forward.y"] == (32, "fp", "activation")


def test_views_are_no_ops_and_readers_say_what_they_touch() -> None:
    trace = capture(lambda: Call(lambda y: y[:, 4:12].t() @ y[:, :8]), (8,))
    product = trace.op["gemm:forward"]
    assert product.reads == ("fc:forward.y", "fc:forward.y")
    assert product.read_elements == (32, 32)
    assert product.nest == Gemm(1, 8, 8, 4, ta=True)
    assert [op.name for op in trace.ops if isinstance(op.nest, Copy)] == ["pad:backward_data", "pad:backward_data#2"]


def test_materialised_views_are_copies() -> None:
    trace = capture(lambda: Call(lambda y: torch.cat([y.t().contiguous(), y.t()[:3]])), (8,))
    copies = [(op.name, op.nest.elements) for op in trace.ops if isinstance(op.nest, Copy)]
    assert copies == [("contiguous:forward", 64), ("cat:forward", 64 + 12), ("pad:backward_data", 64)]


def test_a_slice_over_two_axes_is_one_copy_backward() -> None:
    trace = capture(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), _Every(2)), (3, 8, 8))
    assert [(op.layer, op.nest) for op in trace.ops if isinstance(op.nest, Copy)] == [("1", Copy("pad", 4 * 4 * 64))]


class _Every(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.n, :: self.n]


def test_broadcast_operands_get_a_sum() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.gain, self.shift = nn.Linear(8, 16), nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.gain + self.shift

    trace = capture(Scale, (8,))
    sums = [(op.name, op.nest.elements, op.nest.outputs) for op in trace.ops if op.kind == "reduce"]
    assert sums == [
        ("sum:backward_weight", 64, 1), ("sum:backward_weight#2", 64, 16), ("fc.sum:backward_weight", 64, 16),
    ]  # fmt: skip
    assert functions(trace)["backward_data"] == ["mul_backward", "mul_backward"]


def test_pools() -> None:
    trace = capture(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True),
                              nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(1)), (3, 9, 9),
    )  # fmt: skip
    forward = {op.layer: op.nest for op in trace.ops if isinstance(op.nest, Pool) and op.phase == "forward"}
    backward = {op.layer: op.nest for op in trace.ops if isinstance(op.nest, Pool) and op.phase == "backward_data"}
    assert forward == backward == {
        "1": Pool("max", 4, 4, 9, 9, 5, 5, 3, 3, (2, 2), (1, 1, 1, 1)),
        "2": Pool("average", 4, 4, 5, 5, 3, 3, 2, 2, (2, 2), (0, 1, 0, 1)),
        "3": Pool("average", 4, 4, 3, 3, 2, 2, 2, 2, (1, 1)),
        "4": Pool("average", 4, 4, 2, 2, 1, 1, 2, 2, (2, 2)),
    }  # fmt: skip
    indices = trace.tensor["1.max:forward.indices"]
    assert (indices.bits, indices.format, indices.role, indices.saved) == (64, "int", "mask", True)
    assert trace.op["1.max:backward_data"].reads[1] == indices.name
    assert len(trace.op["2.average:backward_data"].reads) == 1


def test_dropout_is_random_numbers_and_a_product() -> None:
    trace = capture(lambda: nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3)), (8,))
    assert [(op.name, op.kind) for op in trace.ops if op.layer == "1"] == [
        ("1.random:forward", "rng"), ("1.mul:forward", "elementwise"), ("1.mul_backward:backward_data", "elementwise"),
    ]  # fmt: skip
    assert trace.op["1.random:forward"].nest == Rng(64)
    assert (trace.tensor["1.random:forward.y"].role, trace.tensor["1.random:forward.y"].saved) == ("mask", True)


def test_embedding() -> None:
    trace = capture(lambda: nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 4)), (0, 3))
    gather, scatter = trace.op["0.gather:forward"], trace.op["0.scatter:backward_weight"]
    assert (gather.nest, scatter.nest) == (Gather(12, 8), Scatter(12, 8))
    assert gather.read_elements == (96, 12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_cell_is_one_op_per_layer_direction_and_step(kind: type[nn.Module]) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(8, 16, num_layers=2, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][-1]

    trace = capture(Last, (5, 8))
    cells = Counter((op.phase, op.nest.function) for op in trace.ops if op.kind == "cell")
    name = kind.__name__.lower()
    assert cells == {("forward", name): 2 * 2 * 4, ("backward_data", name): 2 * 2 * 4}
    first = next(op for op in trace.ops if op.kind == "cell")
    assert trace.elements_read(first)[:2] == ((4 if name == "lstm" else 3) * 16 * 5,) * 2


@pytest.mark.parametrize(
    ("make", "rule", "operations", "states"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "sgd", 2, []),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "sgd_momentum", 4, ["momentum_buffer"]),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True), "sgd_nesterov", 6,
         ["momentum_buffer"]),
        (torch.optim.Adam, "adam", 13, ["exp_avg", "exp_avg_sq"]),
        (torch.optim.AdamW, "adamw", 14, ["exp_avg", "exp_avg_sq"]),
        (lambda p: torch.optim.RMSprop(p, centered=True), "rmsprop", 15, ["square_avg", "grad_avg"]),
        (torch.optim.Adagrad, "adagrad", 7, ["sum"]),
    ],
)  # fmt: skip
def test_an_optimizer_is_one_update_per_parameter(make, rule: str, operations: int, states: list[str]) -> None:
    """Steady state: the first step, which makes the state, is not the one that is recorded."""
    trace = capture(lambda: nn.Linear(8, 16), (8,), optimizer=make)
    updates = [op for op in trace.ops if op.phase == "update"]
    assert [op.name for op in updates] == ["weight:update", "bias:update"]
    assert updates[0].nest == Update(rule, 128, operations)
    assert updates[0].reads == ("weight", "gemm:backward_weight.gw", *(f"weight.{s}" for s in states))
    assert updates[0].writes == ("weight:update.param", *(f"weight:update.{s}" for s in states))


def test_products_inside_an_optimizer_stay_products() -> None:
    trace = capture(lambda: nn.Linear(8, 16, bias=False), (8,), optimizer=torch.optim.Muon)
    update = Counter(op.kind for op in trace.ops if op.phase == "update")
    assert update["gemm"] == 15  # five Newton-Schulz steps of three products
    assert update["update"] == 1


def test_gradient_clipping_is_part_of_the_update() -> None:
    trace = capture(
        lambda: nn.Linear(8, 16), (8,), before_update=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1.0)
    )
    clipping = [(op.kind, op.nest.function) for op in trace.ops if op.phase == "update" and op.kind != "update"]
    assert clipping[:4] == [("reduce", "norm"), ("reduce", "norm"), ("copy", "stack"), ("reduce", "norm")]
    assert clipping[-2:] == [("elementwise", "mul"), ("elementwise", "mul")]
    scaled = trace.op["weight:update"].reads[1]
    assert trace.writer[scaled].reads[0] == "gemm:backward_weight.gw"
    assert trace.tensor[scaled].role == "weight_gradient"


def test_what_follows_the_optimizer_is_part_of_the_update() -> None:
    """Clipping weights belongs to the update of a parameter; a moving average of it is an op of its own."""

    def recipe(batch: int):
        model = nn.Linear(8, 16)
        model.average = torch.zeros(16, 8)
        rule, x = sgd(model.parameters()), torch.randn(batch, 8)

        def step() -> None:
            rule.zero_grad()
            square(model(x)).backward()
            rule.step()
            with torch.no_grad():
                model.weight.clamp_(-1, 1)
                model.average.lerp_(model.weight, 0.1)

        return model, step

    trace = capture_step(recipe, 4)
    assert names(trace)[-3:] == ["weight:update", "bias:update", "lerp:update"]
    assert trace.op["weight:update"].nest == Update("sgd", 128, 2 + 1)
    assert trace.op["lerp:update"].reads == ("average", "weight:update.param")


def test_an_update_without_an_optimizer() -> None:
    def recipe(batch: int):
        model, x = nn.Linear(8, 16), torch.randn(batch, 8)

        def step() -> None:
            model.zero_grad()
            square(model(x)).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad

        return model, step

    trace = capture_step(recipe, 4)
    assert names(trace)[-4:] == ["mul:update", "weight:update", "mul:update#2", "bias:update"]
    assert trace.op["weight:update"].nest == Update("own", 128, 1)
    assert trace.op["mul:update"].reads == ("gemm:backward_weight.gw",)


def test_data_that_no_variable_names_is_an_input() -> None:
    class Trainer:
        def __init__(self, batch: int) -> None:
            self.model, self.x = nn.Linear(8, 16), torch.randn(batch, 8)
            self.rule = sgd(self.model.parameters())

        def __call__(self) -> None:
            self.rule.zero_grad()
            square(self.model(self.x)).backward()
            self.rule.step()

    trace = capture_step(lambda batch: ((t := Trainer(batch)).model, t), 4, "trainer")
    assert [(t.name, t.shape) for t in trace.tensors if t.role == "input"] == [("input", (4, 8))]


def test_tied_weights_add_up_their_gradients() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.embedding(x) @ self.embedding.weight.t()

    trace = capture(Tied, (0, 3))
    added = [(op.phase, op.nest.function) for op in trace.ops if op.kind == "elementwise"]
    assert added == [("backward_weight", "accumulate")]
    assert Counter(op.phase for op in trace.ops if op.kind == "gemm") == {
        "forward": 1, "backward_data": 1, "backward_weight": 1,
    }  # fmt: skip


def test_recomputed_layers_are_forward_work() -> None:
    from torch.utils.checkpoint import checkpoint

    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, x, use_reentrant=False)

    trace = capture(Saving, (8,))
    assert Counter(op.name.split("#")[0] for op in trace.ops if op.phase == "forward" and op.layer) == {
        "body.0:forward": 2, "body.1.relu:forward": 2, "body.2:forward": 1,
    }  # fmt: skip


def test_a_custom_function_is_seen_inside() -> None:
    class Binary(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sign()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return gradient * (x.abs() < 1)

    found = functions(capture(lambda: Call(Binary.apply), (8,)))
    assert found == {"forward": ["sign"], "backward_data": ["binary_backward"]}


@pytest.mark.parametrize(
    "recipe", ["resnet_cifar.py:resnet20", "mobilenet_cifar.py:mobilenetv2", "transformer.py:vit_tiny6"]
)
def test_saved_tensors_are_those_that_autograd_packs(recipe: str) -> None:
    """By the public hooks, over whole storages; autograd also packs a count of labels, one number."""
    function = load_recipe(f"workloads/{recipe}")
    trace = capture_step(function, 8)
    packed: dict[object, int] = {}
    with torch.device("meta"):
        model, step = function(8)
        session = _Session(model)
        session.run(step)

        def pack(tensor: Tensor) -> Tensor:
            if not session.recorder.in_optimizer:
                packed[session.recorder.ref(tensor).key] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            session.run(step, record=True)
    made = {key: size for key, size in packed.items() if key[0] not in session.facts.existing}
    saved = [t for t in trace.tensors if t.saved and t.name in trace.writer]
    assert sum(made.values()) - 4 == sum(t.size_bytes for t in saved)
    assert len(made) - 1 == len(saved)
