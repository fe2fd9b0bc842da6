"""Residual units in one place: finding them, marking them, and skipping them for a batch or for some samples."""

from __future__ import annotations

from jouletrace.trace.residual import Residuals, Unit, residual_units, residuals
from jouletrace.trace.samples import excerpt, gated, with_samples
from jouletrace.trace.skip import Skip, skips, without_units

__all__ = ["Residuals", "Skip", "Unit", "excerpt", "gated", "residual_units", "residuals", "skips", "with_samples",
           "without_units"]  # fmt: skip
