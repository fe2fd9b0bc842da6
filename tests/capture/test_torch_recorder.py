"""The recorder: a log says exactly what a training did, whatever ends it; and a small E2-Train really learns."""

import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="capture tests need PyTorch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from jouletrace.capture.recorder import record  # noqa: E402
from jouletrace.capture.torch import capture_recipe  # noqa: E402
from jouletrace.errors import CaptureError, TraceError, UsageError  # noqa: E402
from jouletrace.resources import folder  # noqa: E402
from jouletrace.trace.decisions import ACTIVATION, GRADIENT, Decisions, read_decisions  # noqa: E402


class Tiny(nn.Module):
    """Two blocks around a residual stream of three numbers; ``rows`` says how many samples run each (None: no call)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
        self.out = nn.Linear(3, 2)
        self.rows: tuple[int | None, ...] = (4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, rows in zip(self.blocks, self.rows, strict=True):
            if rows is not None:
                x = torch.cat([x[:rows] + block(x[:rows]), x[rows:]])
        return self.out(x)


UNITS = ("blocks.0", "blocks.1")


def learn(model: nn.Module, samples: int = 4) -> None:
    model(torch.ones(samples, 3)).square().sum().backward()


def recorded(path: Path, model: nn.Module, *iterations: object, **options: object) -> Decisions:
    """The log of a training whose iterations are calls, or None for dropped batches."""
    with record(model, path, 4, **{"units": UNITS, **options}) as recorder:
        for iteration in iterations:
            if callable(iteration):
                iteration()
            recorder.step()
    return read_decisions(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.decisions.jsonl.gz"


# -- what is seen without a word from the model


def test_dropped_batches_skipped_blocks_and_rows(path: Path) -> None:
    model = Tiny()

    def run(*rows: int | None) -> object:
        def iteration() -> None:
            model.rows = rows
            learn(model)

        return iteration

    log = recorded(path, model, run(4, 4), None, run(4, None), run(1, 3), None)
    assert log.executed.tolist() == [True, False, True, True, False]
    assert log.samples.tolist() == [[4, 4], [0, 0], [4, 0], [1, 3], [0, 0]]
    assert (log.model, log.batch, log.units) == ("Tiny", 4, UNITS)
    assert log.layers == (*UNITS, "out")
    assert dict(log.producer)["framework"] == "torch"
    assert (log.precision.size, log.predictor.size) == (0, 0)


def test_only_training_counts(path: Path) -> None:
    """An evaluation inside an iteration, a forward pass without a backward one, and a recomputed block."""
    model = Tiny()

    def evaluate() -> None:
        with torch.no_grad():
            model(torch.ones(100, 3))
        model.eval()
        model(torch.ones(100, 3))
        model.train()

    def train_and_evaluate() -> None:
        learn(model, 3)
        evaluate()

    def forward_only() -> None:
        model(torch.ones(4, 3))

    def recompute() -> None:
        checkpoint(model, torch.ones(2, 3, requires_grad=True), use_reentrant=False).sum().backward()

    log = recorded(path, model, train_and_evaluate, evaluate, forward_only, recompute)
    assert log.executed.tolist() == [True, False, False, True]
    assert log.samples.tolist() == [[3, 3], [0, 0], [0, 0], [2, 2]]


def test_checkpoints_that_hide_what_a_block_does_are_refused(path: Path) -> None:
    model = Tiny()

    def recompute() -> None:
        checkpoint(model, torch.ones(2, 3, requires_grad=True), use_reentrant=True).sum().backward()

    with pytest.raises(CaptureError, match=r"hides what 'blocks\.0' does; checkpoint with use_reentrant=False"):
        recorded(path, model, recompute)


def test_micro_batches_add_up(path: Path) -> None:
    model = Tiny()

    def twice() -> None:
        learn(model, 2)
        learn(model, 1)

    assert recorded(path, model, twice).samples.tolist() == [[3, 3]]


def test_nothing_stays_on_the_model(path: Path) -> None:
    model = Tiny()
    recorded(path, model, lambda: learn(model))
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_densities_are_those_of_what_a_layer_reads_and_of_the_gradient_of_what_it_writes(path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1, 1], [-1, -1, -1]]))  # the second number dies in the ReLU
        model[2].weight.fill_(1)
    x = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1]])

    def learn_x() -> None:
        model(x).sum().backward()

    log = recorded(path, model, None, learn_x, learn_x, None, learn_x, learn_x, units=(), density_every=2)
    seen = [[0, ACTIVATION, 7, 12], [0, GRADIENT, 4, 8], [1, ACTIVATION, 4, 8], [1, GRADIENT, 4, 4]]
    # Of the iterations that ran (1, 2, 4 and 5) every second one.
    assert log.density.tolist() == [[i, *row] for i in (1, 4) for row in seen]
    assert log.mean_density(ACTIVATION, "0") == Fraction(7, 12)
    assert not recorded(path, model, learn_x, units=(), density_every=0).density.size


# -- what a module tells


class Talkative(Tiny):
    """Says what a call does not show: the samples and the bits of a block, and what its predictor gave."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[0].jouletrace_samples = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.blocks[0].jouletrace_samples = 3 if len(x) == 4 else torch.tensor(1)
        return super().forward(x)


def test_attributes_of_modules(path: Path) -> None:
    model = Talkative()

    def first() -> None:
        model.jouletrace_bits = (8, 8, 16)  # holds for the whole model...
        learn(model, 4)
        model.blocks[0].jouletrace_predictor = (2, 9)

    def second() -> None:
        model.blocks.jouletrace_bits = (4, 4, 16)  # ...but for what is nearer to a layer
        learn(model, 2)
        model.blocks[0].jouletrace_predictor = (torch.tensor(7), 9)

    def third() -> None:
        model.rows = (None, 4)  # a block that was not called predicted nothing and ran no sample
        learn(model, 4)

    log = recorded(path, model, first, second, third, units=None)
    assert log.units == ("blocks.0",)  # the module with the attribute
    assert log.samples.tolist() == [[3], [1], [0]]
    assert log.predictor.tolist() == [[0, 0, 2, 9], [1, 0, 7, 9]]
    assert log.precision.tolist() == [
        [0, 0, 8, 8, 16], [0, 1, 8, 8, 16], [0, 2, 8, 8, 16], [1, 0, 4, 4, 16], [1, 1, 4, 4, 16],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("attribute", "value", "sentence"),
    [
        ("jouletrace_bits", (8, 8), "blocks.0.jouletrace_bits has to be 3 integers (got (8, 8))"),
        ("jouletrace_bits", (8, 8, 0), "blocks.0.jouletrace_bits must lie within 1 and 64 (got (8, 8, 0))"),
        ("jouletrace_samples", 2.5, "blocks.0.jouletrace_samples has to be an integer (got 2.5)"),
        ("jouletrace_samples", 5, "iteration 0: 5 samples ran the unit 'blocks.0', of a batch of 4"),
        ("jouletrace_predictor", (3, 2), "blocks.0.jouletrace_predictor: 3 of 2 makes no sense"),
    ],
)
def test_attributes_that_make_no_sense(path: Path, attribute: str, value: object, sentence: str) -> None:
    model = Tiny()
    setattr(model.blocks[0], attribute, value)
    with pytest.raises(CaptureError) as caught:
        recorded(path, model, lambda: learn(model))
    assert str(caught.value).startswith(sentence)


def test_units_by_class_and_by_wrong_name(path: Path) -> None:
    model = Tiny()
    assert recorded(path, model, lambda: learn(model), units=[nn.Linear]).units == (*UNITS, "out")
    with pytest.raises(UsageError, match=r"no module 'block\.0'; did you mean 'blocks\.0'"):
        record(model, path, 4, units=["block.0"])
    with pytest.raises(UsageError, match="takes a gradient"), record(nn.ReLU(), path, 4):
        pass
    with pytest.raises(UsageError, match="folder that exists"), record(model, path / "no" / "log.jsonl", 4):
        pass


# -- however a training ends


def test_an_exception_leaves_all_iterations_up_to_there(path: Path) -> None:
    model = Tiny()
    recorded(path, model, lambda: learn(model))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt) as caught, record(model, path, 4, units=UNITS) as recorder:
        for _ in range(3):
            learn(model)
            recorder.step()
        raise KeyboardInterrupt
    partial = path.with_name("tiny.partial.jsonl")
    assert caught.value.__notes__ == [f"the decisions of the 3 iterations up to here are in {partial}"]
    assert read_decisions(partial).samples.tolist() == [[4, 4]] * 3
    assert path.read_bytes() == before


def test_a_finished_training_leaves_one_file(path: Path) -> None:
    model = Tiny()
    recorded(path, model, lambda: learn(model))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, torch\n"
        "from jouletrace.capture.recorder import record\n"
        "model = torch.nn.Linear(3, 2)\n"
        "with record(model, 'run.decisions.jsonl.gz', 4) as recorder:\n"
        "    for _ in range(2):\n"
        "        model(torch.ones(4, 3)).sum().backward()\n"
        "        recorder.step()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    source = str(Path(sys.modules["jouletrace"].__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": source})
    assert done.returncode == -signal.SIGKILL
    partial = tmp_path / "run.partial.jsonl"
    with pytest.raises(TraceError) as caught:
        read_decisions(partial)
    end = str(caught.value).rpartition("close it with the line ")[2]
    partial.write_text(partial.read_text() + end + "\n")
    assert read_decisions(partial).executed.tolist() == [True, True]


def test_steps_belong_inside_and_must_not_be_forgotten(path: Path) -> None:
    model = Tiny()
    with pytest.raises(UsageError, match=r"call recorder\.step\(\)"), record(model, path, 4):
        learn(model)
    with pytest.raises(UsageError, match="belongs inside"):
        record(model, path, 4).step()


# -- a real training


class Counters:
    """What a training does, counted without the recorder: the rows of each block's first convolution, comparisons."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch, e2train: ModuleType) -> None:
        self.rows = dict.fromkeys(("layer1.0", "layer2.0", "layer3.0"), 0)
        self.taken = self.whole = 0
        for name in self.rows:
            model.get_submodule(name).conv1.register_forward_pre_hook(lambda _, x, name=name: self._ran(name, len(x[0])))
        usual = torch.where

        def where(sure: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            self.taken += int(torch.count_nonzero(sure))
            self.whole += sure.numel()
            return usual(sure, *others)

        monkeypatch.setattr(torch, "where", where)

    def _ran(self, name: str, rows: int) -> None:
        self.rows[name] += rows


def test_a_training_with_all_three_learns_and_its_log_is_right(
    e2train: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model, data = e2train.ResNet(1, e2train.PSGConv2d, gates=True), e2train.Patterns(1)
    counters = Counters(model, monkeypatch, e2train)
    losses: list[float | None] = []
    with record(model, path, 32, density_every=50) as recorder:
        for loss in e2train.train(model, data, 240):
            losses.append(loss)
            recorder.step()
    log = read_decisions(path)


    # SMD: half of 240 batches, with a standard deviation of 8.
    assert log.executed.tolist() == [loss is not None for loss in losses]
    assert 90 < log.executed_count < 150
    # SLU: the first block always runs, the others for some of the samples.
    assert log.units == ("layer1.0", "layer2.0", "layer3.0")
    assert log.samples.sum(axis=0).tolist() == list(counters.rows.values())
    assert (log.samples[log.executed, 0] == 32).all()
    assert 0 < log.mean_samples()[1] < 32
    assert len(set(log.samples[log.executed, 1].tolist())) > 3
    # PSG: every signed layer told its share in every iteration that ran.
    assert counters.taken > 0
    assert log.predictor_share() == Fraction(counters.taken, counters.whole)
    assert 0.3 < log.predictor_share() < 0.9
    assert log.bits_at(239)[log.layers.index("layer1.0.conv1")].tolist() == [8, 8, 16]
    # A ReLU zeroes about half of what the next convolution reads.
    assert 0.3 < log.mean_density(ACTIVATION, "layer1.0.conv2") < 0.7
    # It learns: there are ten classes, so chance is an accuracy of 0.1.
    ran = [loss for loss in losses if loss is not None]
    assert sum(ran[-10:]) < 0.3 * sum(ran[:10])
    assert e2train.accuracy(model, data) > 0.8


def test_units_have_the_names_of_the_captured_blocks(e2train: ModuleType, path: Path) -> None:
    trace = capture_recipe("workloads/e2train.py:resnet8", 2)
    weights = {op.layer for op in trace.ops if op.phase == "update"}
    layers = {op.layer for op in trace.ops if op.kind in ("conv", "gemm")}
    model = e2train.ResNet(1, e2train.PSGConv2d, gates=True)
    with record(model, path, 2) as recorder:
        functional.cross_entropy(model(torch.randn(2, 3, 16, 16)), torch.tensor([0, 1])).backward()
        recorder.step()
    log = read_decisions(path)
    adds = [op.layer for op in trace.ops if op.name.endswith(".add:forward")]
    assert log.units == tuple(adds)
    assert layers <= set(log.layers)
    assert layers < weights


def test_the_sign_of_a_weight_gradient_comes_from_the_predictor_where_it_is_sure(e2train: ModuleType) -> None:
    """One weight per channel, so that both products are written out: full codes, and their first bits."""
    conv = e2train.PSGConv2d(2, 1, 1, bias=False)
    x = torch.tensor([127.0, 5.0]).view(1, 2, 1, 1)
    conv(x).sum().backward()
    # 8 bits: codes 127 and 5. Their first 4 bits: 128 and 0 (steps of 16). 0 is below 5 % of the largest prediction,
    # so the second weight takes the sign of the full product.
    assert conv.weight.grad.flatten().tolist() == [1, 1]
    assert [int(n) for n in conv.jouletrace_predictor] == [1, 2]


def test_skipped_samples_are_not_computed_and_pass_unchanged(e2train: ModuleType) -> None:
    block = e2train.Block(4, 4, nn.Conv2d).eval()
    x = torch.rand(5, 4, 6, 6)
    mask = torch.tensor([1.0, 0, 1, 0, 0])
    seen: list[int] = []
    block.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    y = block(x, mask)
    assert seen == [2]
    assert torch.equal(y[mask == 0], x[mask == 0])
    assert torch.allclose(y[mask == 1], block(x)[mask == 1], atol=1e-6)
    assert torch.equal(block(x, torch.zeros(5)), x)
    assert seen == [2, 5]  # nothing at all the last time


def test_cyclic_precision_rises_by_half_a_cosine_and_falls_at_once(e2train: ModuleType) -> None:
    bits = [e2train.cyclic_bits(i, 64_000, 32) for i in range(2000)]
    assert bits == sorted(bits)
    # Of a period of 2,000 iterations, from the formula of CPT with 3 to 8 bits.
    assert [bits.count(b) for b in range(3, 9)] == [410, 329, 261, 262, 329, 409]
    assert e2train.cyclic_bits(2000, 64_000, 32) == 3


def test_the_program_writes_a_log(tmp_path: Path) -> None:
    source = str(Path(sys.modules["jouletrace"].__file__).parents[1])
    command = [sys.executable, str(folder("workloads") / "e2train.py"), "--iterations", "20", "--cyclic", "--out", "a.jsonl"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": source}, capture_output=True, text=True, check=True
    )
    log = read_decisions(tmp_path / "a.jsonl")
    assert f"executed   {log.executed_count} of 20 iterations" in done.stdout
    assert len(set(log.precision[:, 2].tolist())) > 1
