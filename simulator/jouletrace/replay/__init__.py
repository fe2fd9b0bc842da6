"""Replaying a step or a whole training on an accelerator."""

from jouletrace.replay.many import simulate_many
from jouletrace.replay.run import simulate_run
from jouletrace.replay.step import reproduce, simulate

__all__ = ["reproduce", "simulate", "simulate_many", "simulate_run"]
