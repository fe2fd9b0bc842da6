"""Non-negative least squares with relative errors: factors, their intervals, and how well the rows fix them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import UsageError

__all__ = ["Fit", "Vector", "fit"]

Vector = NDArray[np.float64]

# Above this a reading that is off by 0.01 % moves some factor by about its own size.
_WORST_CONDITION = 1e4
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Fit:
    """Factors, half widths of their intervals (None where no row is left over), and the condition number."""

    factors: Vector
    half_widths: Vector | None
    condition: float

    def interval(self, g: int) -> tuple[float | None, float | None]:
        """Of one factor; it begins at 0 at the least, as a price is never negative."""
        if self.half_widths is None:
            return None, None
        factor, half = float(self.factors[g]), float(self.half_widths[g])
        return max(0.0, factor - half), factor + half


def fit(matrix: Vector, fixed: Vector, measured: Vector, names: Sequence[str]) -> Fit:
    """Non-negative factors of the columns that bring ``fixed + matrix @ factors`` nearest to what was measured.

    Errors are relative. Intervals are those of ordinary least squares (Student's t, as many degrees of freedom as rows
    are left over). Raises :class:`UsageError` where the rows do not fix every factor.

    >>> energies = np.array([[1.0, 1.0], [1.0, 3.0], [2.0, 1.0]])
    >>> fit(energies, np.zeros(3), energies @ np.array([2.0, 0.5]), ["static", "dynamic"]).factors.round(9).tolist()
    [2.0, 0.5]
    """
    from scipy.optimize import nnls  # pyright: ignore
    from scipy.stats import t as student  # pyright: ignore

    rows, columns = matrix.shape
    if rows < columns:
        raise UsageError(f"{rows} rows cannot fix {columns} coefficients ({', '.join(names)}); "
                         "measure more, or fit fewer by joining them, as in --fit array+buffers")  # fmt: skip
    scaled, target = matrix / measured[:, None], 1 - fixed / measured
    lengths = np.linalg.norm(scaled, axis=0)
    if not lengths.all():
        idle = [name for name, length in zip(names, lengths, strict=True) if not length]
        raise UsageError(f"no fitted row holds energy of {' or of '.join(idle)}; add a row whose scope holds it, "
                         "or leave it out of --fit")  # fmt: skip
    condition = _condition(scaled / lengths, names)
    factors, residual = cast("tuple[Vector, float]", nnls(scaled / lengths, target))
    half_widths = None
    if rows > columns:
        inverse = cast(Vector, np.linalg.inv(scaled.T @ scaled))
        quantile = float(cast("Any", student.ppf(0.5 + _CONFIDENCE / 2, rows - columns)))  # pyright: ignore
        half_widths = quantile * residual * np.sqrt(np.diag(inverse) / (rows - columns))
    return Fit(factors / lengths, half_widths, condition)


def _condition(unit: Vector, names: Sequence[str]) -> float:
    """The condition number; :class:`UsageError` with the two coefficients that the rows tell apart least."""
    _, sizes, directions = np.linalg.svd(unit, full_matrices=False)
    if sizes[-1] * _WORST_CONDITION >= sizes[0]:
        return float(sizes[0] / sizes[-1])
    one, other = sorted(np.argsort(-np.abs(directions[-1]))[:2])
    raise UsageError(f"these rows do not tell {names[one]} from {names[other]}: their energies are in one proportion "
                     "in all of them; measure at another clock, batch or width, or fit "
                     f"{names[one]}+{names[other]} together")  # fmt: skip
