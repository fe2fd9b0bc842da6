"""Strategies side by side: a baseline, each strategy alone, and the way from the baseline to a combination."""

from jouletrace.comparison.evaluate import compare
from jouletrace.comparison.model import Column, Comparison, Spread

__all__ = ["Column", "Comparison", "Spread", "compare"]
