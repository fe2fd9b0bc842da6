"""For people who write strategies, mappings or engines: generated steps and hardware, and the laws of a rewrite.

``assert_laws(MyStrategy())`` is the one line that tests a strategy. Needs the ``testing`` extra (Hypothesis). What
Hypothesis calls a strategy is called a generator in the manual; a strategy is a
:class:`jouletrace.strategies.base.Strategy`.
"""

from __future__ import annotations

from importlib.util import find_spec

from jouletrace.errors import UsageError

if find_spec("hypothesis") is None:
    raise UsageError("jouletrace.testing draws its cases with Hypothesis, which is not installed here; "
                     "run 'pip install jouletrace[testing]'")  # fmt: skip

from jouletrace.testing.case import Case
from jouletrace.testing.hardware import hardware_specs
from jouletrace.testing.laws import (
    law_energy,
    law_header,
    law_macs,
    law_neutral,
    law_nothing_left_behind,
    law_parameters,
    law_survivors,
    law_valid,
)
from jouletrace.testing.run_laws import law_closed_form, law_commutes, law_repeatable, law_streams
from jouletrace.testing.steps import OPTIMIZERS, Step
from jouletrace.testing.suite import assert_laws
from jouletrace.testing.traces import (
    dense_traces,
    gated,
    image_traces,
    recurrent_traces,
    residual_traces,
    sequence_traces,
    traces,
)

__all__ = [
    "OPTIMIZERS",
    "Case",
    "Step",
    "assert_laws",
    "dense_traces",
    "gated",
    "hardware_specs",
    "image_traces",
    "law_closed_form",
    "law_commutes",
    "law_energy",
    "law_header",
    "law_macs",
    "law_neutral",
    "law_nothing_left_behind",
    "law_parameters",
    "law_repeatable",
    "law_streams",
    "law_survivors",
    "law_valid",
    "recurrent_traces",
    "residual_traces",
    "sequence_traces",
    "traces",
]
