"""All laws at once, on generated steps and hardware: the one line that tests a strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from jouletrace.errors import RewriteError
from jouletrace.hardware.spec import Hardware
from jouletrace.strategies.base import Strategy
from jouletrace.strategies.registry import strategy as named
from jouletrace.testing import laws, run_laws
from jouletrace.testing.case import Case
from jouletrace.testing.hardware import hardware_specs
from jouletrace.testing.traces import traces as any_traces
from jouletrace.trace.model import Trace

__all__ = ["LAWS", "assert_laws"]

# Laws of one case, in the order in which they are tried.
LAWS: tuple[Callable[[Case], None], ...] = (
    laws.law_valid,
    laws.law_neutral,
    laws.law_survivors,
    laws.law_nothing_left_behind,
    laws.law_parameters,
    laws.law_macs,
    laws.law_header,
    run_laws.law_repeatable,
    run_laws.law_streams,
)
# One step in so many is rewritten in a training that is long enough to count.
_COUNTED = 50
# Laws take as long as they take, and generated steps are as large as they are.
_UNCHECKED = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)


def assert_laws(
    strategy: Strategy, *, cases: int = 100, traces: st.SearchStrategy[Trace] | None = None,
    hardware: st.SearchStrategy[Hardware] | Hardware | None = None, seed: int = 0, iterations: int = 24,
) -> None:  # fmt: skip
    """Raises AssertionError, with a sentence and the smallest step that shows it, if a law does not hold.

    ``cases`` steps are drawn from ``traces`` (any that :func:`~jouletrace.testing.traces.traces` gives); as many are
    mapped to ``hardware`` (any that :func:`~jouletrace.testing.hardware.hardware_specs` gives). ``seed`` is
    that of the draws and of the strategy; each run has so many ``iterations``. Steps that the strategy refuses are
    passed over, but if it changes none of them the laws hold of nothing, and that is an error, too.

    >>> from jouletrace.strategies.signsgd import SignSGD
    >>> assert_laws(SignSGD(), cases=5)
    """
    steps = any_traces() if traces is None else traces
    boards = st.just(hardware) if isinstance(hardware, Hardware) else hardware or hardware_specs()
    pairs = [(part, named(name)) for part in strategy.parts for name in sorted(part.commutes_with)]
    changed = 0
    refusals: list[str] = []

    def every_case(trace: Trace) -> None:
        nonlocal changed
        if (case := _case(Case(strategy, trace, seed, iterations), refusals)) is None:
            return
        changed += case.changed
        for law in LAWS:
            law(case)
        for part, other in pairs:
            run_laws.law_commutes(Case(part, trace, seed, iterations), other)

    def mapped(trace: Trace, board: Hardware) -> None:
        if (case := _case(Case(strategy, trace, seed, iterations), refusals)) is not None:
            laws.law_energy(case, board)

    def counted(trace: Trace) -> None:
        if _case(Case(strategy, trace, seed, iterations), refusals) is not None:
            run_laws.law_closed_form(strategy, trace, seed=seed)

    _try(strategy, cases, seed, every_case, steps)
    if not changed:
        why = f" (the last of {len(refusals)} that it refused: {refusals[-1]})" if refusals else ""
        raise AssertionError(f"{strategy} changes none of {cases} steps{why}, so its laws were not tested; "
                             "give 'traces' or knobs with which it does something.")  # fmt: skip
    _try(strategy, cases, seed, mapped, steps, boards)
    if any(part.random for part in strategy.parts):
        _try(strategy, max(1, cases // _COUNTED), seed, counted, steps)


def _case(case: Case, refusals: list[str]) -> Case | None:
    """The case, unless the strategy refuses it; then its sentence joins the refusals."""
    try:
        _ = (case.stages, case.run_stages)
    except RewriteError as error:
        refusals.append(str(error))
        return None
    return case


class _Drawn:
    """What was drawn, with no text of its own: Hypothesis would print all of a step."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values

    def __repr__(self) -> str:
        return "the step below"


@st.composite
def _hidden(draw: st.DrawFn, generators: tuple[st.SearchStrategy[Any], ...]) -> _Drawn:
    return _Drawn(tuple(map(draw, generators)))


def _try(
    strategy: Strategy, cases: int, seed: int, law: Callable[..., None], *drawn: st.SearchStrategy[Any]
) -> None:
    """The law on so many drawn cases; the smallest that breaks it is told in words, not printed as a value."""
    smallest: list[Trace] = []

    def remembered(drawn: _Drawn) -> None:
        try:
            law(*drawn.values)
        except AssertionError:
            smallest[:] = drawn.values[:1]  # the last one that fails is the one that was shrunk
            raise

    chosen = settings(max_examples=cases, deadline=None, database=None, derandomize=False, report_multiple_bugs=False,
                      print_blob=False, suppress_health_check=_UNCHECKED,
                      phases=(Phase.generate, Phase.shrink))  # fmt: skip
    try:
        hypothesis.seed(seed)(chosen(hypothesis.given(_hidden(drawn))(remembered)))()
    except AssertionError as error:
        trace = smallest[0]
        ops = ", ".join(op.name for op in trace.ops if op.phase == "forward")
        raise AssertionError(f"{strategy}: {error}\nThe smallest step found has a batch of {trace.header.batch} and "
                             f"the forward ops {ops}.") from None  # fmt: skip
