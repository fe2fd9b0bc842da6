"""Progressive fractional quantisation: Fu et al., FracTrain, NeurIPS 2020."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError, UsageError
from jouletrace.strategies.base import apply
from jouletrace.strategies.pfq import ProgressiveFractionalQuantisation, read_losses, turning_points
from jouletrace.testing import assert_laws
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run

STEP = load_trace("resnet20-cifar10-b32")
EPSILON, ALPHA = Fraction(1, 20), Fraction(3, 10)


def widths(trace: Trace) -> tuple[int, int]:
    """Forward and gradient bits of an inner layer."""
    return trace.bits_read(trace.op["layer1.1.conv1:forward"])[0], trace.bits_read(
        trace.op["layer1.1.conv1:backward_weight"]
    )[0]


def stages(strategy: ProgressiveFractionalQuantisation, iterations: int = 8) -> list[tuple[int, int]]:
    run = apply(strategy, Run("training", (STEP,), np.zeros(iterations, dtype=np.int32))).value
    return [widths(run.steps[i]) for i in run.step_of.tolist()]


def test_stages_are_equally_long_unless_told() -> None:
    published = [(3, 6), (4, 6), (6, 8), (8, 8)]
    assert stages(ProgressiveFractionalQuantisation()) == [w for w in published for _ in range(2)]
    told = ProgressiveFractionalQuantisation(boundaries=(Fraction(1, 8), Fraction(1, 4), Fraction(7, 8)))
    assert stages(told) == [(3, 6), (4, 6), *[(6, 8)] * 5, (8, 8)]


def test_a_turning_point_is_five_epochs_within_epsilon_which_then_shrinks() -> None:
    # The losses fall by 0.01 an epoch: the fifth lies within 0.05 of the four before. Then 0.05 · 0.3 = 0.015 is asked
    # for, which they meet only once they stand still; then 0.0045.
    falling = [1 - Fraction(e, 100) for e in range(10)]
    still = [Fraction(9, 10)] * 6
    points = turning_points(map(float, (*falling, *still)), 3, epsilon=EPSILON, alpha=ALPHA, window=5)
    assert points == (5, 14, 15)  # 0.91 and four of 0.90, then five of 0.90
    assert turning_points(map(float, falling), 3, epsilon=EPSILON, alpha=ALPHA, window=5) == (5,)


def test_losses_of_a_training_end_the_stages(tmp_path: Path) -> None:
    file = tmp_path / "losses.txt"
    file.write_text("\n".join(["2", "1", "1", "1", "1", "1", "0.5", "0.4"]))
    strategy = ProgressiveFractionalQuantisation(bits=(4, 8), gradient=(6, 8), losses=str(file))
    assert strategy.ends() == (Fraction(6, 8),)
    assert stages(strategy) == [(4, 6)] * 6 + [(8, 8)] * 2


def test_a_stage_whose_turning_point_never_comes_is_not_reached(tmp_path: Path) -> None:
    (tmp_path / "losses.txt").write_text("5\n4\n3\n2\n1\n0\n")
    strategy = ProgressiveFractionalQuantisation(losses=str(tmp_path / "losses.txt"))
    assert stages(strategy) == [(3, 6)] * 8


def test_files_that_hold_no_losses_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("1.0\nlow\n0.5\n\nlower\n")
    (tmp_path / "nan").write_text("nan\n")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(RewriteError) as caught:
        read_losses(str(tmp_path / "words"))
    assert [p.partition("words:")[2][:1] for p in caught.value.problems] == ["2", "5"]
    with pytest.raises(RewriteError, match="finite"):
        read_losses(str(tmp_path / "nan"))
    with pytest.raises(RewriteError, match="holds no losses"):
        read_losses(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="missing"):
        read_losses(str(tmp_path / "missing"))


def test_a_single_step_has_the_stage_of_its_position() -> None:
    strategy = ProgressiveFractionalQuantisation
    assert widths(apply(strategy(), STEP).value) == (6, 8)  # the middle of the run opens the third of four stages
    assert widths(apply(strategy(position=Fraction(0)), STEP).value) == (3, 6)


def test_neutral_is_the_very_step_and_run() -> None:
    run = Run("training", (STEP,), np.zeros(8, dtype=np.int32))
    neutral = ProgressiveFractionalQuantisation().neutral()
    assert apply(neutral, STEP).value is STEP
    assert apply(neutral, run).value is run


def test_wrong_knobs_are_told_together() -> None:
    with pytest.raises(RewriteError) as caught:
        ProgressiveFractionalQuantisation(bits=(4, 3), gradient=(6, 6), boundaries=(Fraction(1), Fraction(2)), window=1)
    assert caught.value.problems == (
        "pfq: 2 stages have 1 boundaries between them (got 2)",
        "pfq: boundaries are shares of the run, ascending between 0 and 1",
        "pfq: window has to be at least 2 (got 1)",
        "pfq: bits may not fall from stage to stage",
    )
    with pytest.raises(RewriteError, match=r"got bits 3, gradient 4"):
        ProgressiveFractionalQuantisation(bits=(3, 4, 6))


def test_laws() -> None:
    assert_laws(ProgressiveFractionalQuantisation(), cases=10)
