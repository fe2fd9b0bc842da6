"""A systolic array that moves every value through its registers, one cycle at a time.

It knows no formula: operands are fed at the edges, each processing element looks at its own registers and
its neighbours', and a fold is over when the last result has left. Values travel with a tag that says which
vector they belong to; -1 is a bubble.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.int64]
BUBBLE = -1


class Grid:
    """``rows`` × ``columns`` processing elements of one dataflow; ``cycle`` counts what has passed."""

    def __init__(self, rows: int, columns: int, dataflow: str) -> None:
        self.rows, self.columns, self.dataflow = rows, columns, dataflow
        self.cycle = 0
        self.multiplications = 0

    def product(self, left: Matrix, right: Matrix) -> tuple[Matrix, list[int]]:
        """left · right, fold by fold, and the cycles of every fold (K innermost)."""
        if self.dataflow == "output_stationary":
            return self._output_folds(left, right)
        if self.dataflow == "weight_stationary":
            return self._stationary_folds(left, right)
        result, cycles = self._stationary_folds(right.T, left.T)
        return result.T, cycles

    def _stationary_folds(self, moving: Matrix, held: Matrix) -> tuple[Matrix, list[int]]:
        """``held`` is cut in both dimensions; what the folds of one column add up to is summed outside."""
        result = np.zeros((moving.shape[0], held.shape[1]), dtype=np.int64)
        cycles: list[int] = []
        for column in range(0, held.shape[1], self.columns):
            columns = slice(column, column + self.columns)
            for row in range(0, held.shape[0], self.rows):
                rows, began = slice(row, row + self.rows), self.cycle
                result[:, columns] += self._stationary_fold(moving[:, rows], held[rows, columns])
                cycles.append(self.cycle - began)
        return result, cycles

    def _output_folds(self, moving: Matrix, held: Matrix) -> tuple[Matrix, list[int]]:
        """The result is cut in both dimensions."""
        result = np.zeros((moving.shape[0], held.shape[1]), dtype=np.int64)
        cycles: list[int] = []
        for row in range(0, moving.shape[0], self.rows):
            rows = slice(row, row + self.rows)
            for column in range(0, held.shape[1], self.columns):
                columns, began = slice(column, column + self.columns), self.cycle
                result[rows, columns] = self._output_fold(moving[rows], held[:, columns])
                cycles.append(self.cycle - began)
        return result, cycles

    def _stationary_fold(self, moving: Matrix, held: Matrix) -> Matrix:
        """``held`` (K × columns) stays, rows of ``moving`` (T × K) pass through, sums run down and out."""
        depth, width = held.shape
        stationary = np.zeros((self.rows, self.columns), dtype=np.int64)
        # Preload: the last row goes in first; every cycle moves all rows down by one.
        padded = np.zeros((self.rows, self.columns), dtype=np.int64)
        padded[:depth, :width] = held
        for row in padded[::-1]:
            stationary[1:] = stationary[:-1].copy()
            stationary[0] = row
            self.cycle += 1
        assert np.array_equal(stationary, padded)

        value = np.zeros((self.rows, self.columns), dtype=np.int64)
        tag = np.full((self.rows, self.columns), BUBBLE)
        sums = np.zeros((self.rows, self.columns), dtype=np.int64)
        result = np.zeros((len(moving), self.columns), dtype=np.int64)
        left = 0
        started = self.cycle
        while left < len(moving) * self.columns:
            # Row r is fed r cycles late, so that a value meets the sum that comes from above.
            feed_value = np.zeros(self.rows, dtype=np.int64)
            feed_tag = np.full(self.rows, BUBBLE)
            for row in range(self.rows):
                vector = self.cycle - started - row
                if 0 <= vector < len(moving):
                    feed_tag[row] = vector
                    feed_value[row] = moving[vector, row] if row < depth else 0
            value = np.column_stack((feed_value, value[:, :-1]))
            tag = np.column_stack((feed_tag, tag[:, :-1]))
            above = np.vstack((np.zeros(self.columns, dtype=np.int64), sums[:-1]))
            sums = above + stationary * value
            self.multiplications += int(np.count_nonzero(tag[:depth, :width] != BUBBLE))
            self.cycle += 1
            for column in np.flatnonzero(tag[-1] != BUBBLE):
                result[tag[-1, column], column] = sums[-1, column]
                left += 1
        return result[:, :width]

    def _output_fold(self, moving: Matrix, held: Matrix) -> Matrix:
        """Rows of ``moving`` (rows × T) enter from the left, columns of ``held`` (T × columns) from above."""
        height, depth, width = moving.shape[0], moving.shape[1], held.shape[1]
        shape = (self.rows, self.columns)
        across, down, sums = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        across_tag, down_tag, added = (
            np.full(shape, BUBBLE),
            np.full(shape, BUBBLE),
            np.zeros(shape, dtype=np.int64),
        )
        started = self.cycle
        while not (added == depth).all():
            now = self.cycle - started
            left = np.array(
                [moving[r, now - r] if r < height and 0 <= now - r < depth else 0 for r in range(self.rows)]
            )
            top = np.array([held[now - c, c] if c < width and 0 <= now - c < depth else 0 for c in range(self.columns)])
            left_tag = [now - r if 0 <= now - r < depth else BUBBLE for r in range(self.rows)]
            top_tag = [now - c if 0 <= now - c < depth else BUBBLE for c in range(self.columns)]
            across, across_tag = (
                np.column_stack((left, across[:, :-1])), np.column_stack((left_tag, across_tag[:, :-1])),
            )  # fmt: skip
            down, down_tag = np.vstack((top, down[:-1])), np.vstack((top_tag, down_tag[:-1]))
            assert np.array_equal(across_tag, down_tag), "operands of one step meet in one element"
            busy = across_tag != BUBBLE
            sums += np.where(busy, across * down, 0)
            added += busy
            self.multiplications += int(np.count_nonzero(busy[:height, :width]))
            self.cycle += 1
        return sums[:height, :width]
