"""Replaying a step (step, many) or a whole training (run) on an accelerator."""
