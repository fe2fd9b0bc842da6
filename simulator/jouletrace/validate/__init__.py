"""Published measurements beside what is simulated: what agrees, within which tolerance, and what does not."""

from jouletrace.validate.outcome import Outcome, Summary, Validation, validate

__all__ = ["Outcome", "Summary", "Validation", "validate"]
