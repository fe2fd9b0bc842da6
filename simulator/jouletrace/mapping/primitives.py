"""Primitive operations of every function that is no matrix product.

The primitives are add, mul, div, sqrt, exp, log, compare and random. The vector unit computes in fp32,
whatever the width of the stored operands, so their actions are called ``add_fp32`` and so on. A function is
counted by the formula that its row stands for: tanh(x) = 1 - 2 / (exp(2x) + 1), gelu in its tanh form
(Hendrycks and Gimpel, arXiv 1606.08415), erf by Abramowitz and Stegun 7.1.26, sine and cosine as polynomials
of four terms. Moving, choosing and combining bits, and changing a sign are no primitives; rounding to another
format is an add.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

__all__ = [
    "CELLS", "ELEMENTWISE", "FROZEN_NORM", "LOSSES", "NORMS", "PRIMITIVES", "REDUCTIONS", "Primitive", "Work",
    "elementwise_work", "together", "update_work", "work",
]  # fmt: skip

Primitive = Literal["add", "mul", "div", "sqrt", "exp", "log", "compare", "random"]
PRIMITIVES: tuple[Primitive, ...] = ("add", "mul", "div", "sqrt", "exp", "log", "compare", "random")
Work = tuple[tuple[Primitive, int], ...]


def work(**counts: int) -> Work:
    """Primitive operations, in a fixed order and without zeros.

    >>> work(mul=1, add=2, exp=0)
    (('add', 2), ('mul', 1))
    """
    return tuple((p, counts[p]) for p in PRIMITIVES if counts.get(p))


def together(first: Work, second: Work) -> Work:
    """The sum of two works.

    >>> together(work(mul=1), work(mul=1, sqrt=1))
    (('mul', 2), ('sqrt', 1))
    """
    return work(**(Counter(dict(first)) + Counter(dict(second))))


def _alike(*groups: tuple[Work, str]) -> dict[str, Work]:
    return {name: each for each, names in groups for name in names.split()}


# Per element.
ELEMENTWISE: Mapping[str, Work] = MappingProxyType(_alike(
    (work(), "neg neg_backward copysign tril triu bitwise_and bitwise_not bitwise_or bitwise_xor __and__ "
             "__or__ __xor__ logical_and logical_not logical_or logical_xor"),
    (work(add=1), "add sub sub_backward rsub accumulate ceil floor round trunc cast cast_backward"),
    (work(mul=1), "mul mul_backward scale square mean_backward dequantize exp_backward"),
    (work(mul=2), "square_backward reciprocal_backward"),
    (work(div=1), "div reciprocal log_backward"),
    (work(sqrt=1), "sqrt"),
    (work(exp=1), "exp"),
    (work(log=1), "log"),
    (work(compare=1), "relu relu_backward abs abs_backward sign sgn where where_backward mask masked_fill "
                      "compare eq ne ge gt le lt isinf isnan nan_to_num max max_backward min min_backward "
                      "maximum minimum fmax fmin clamp_max clamp_min threshold threshold_backward"),
    (work(compare=2), "relu6 relu6_backward hardtanh hardtanh_backward clamp clamp_backward hardshrink "
                      "hardshrink_backward softshrink_backward"),
) | {
    "leaky_relu": work(compare=1, mul=1),
    "leaky_relu_backward": work(compare=1, mul=1),
    "prelu": work(compare=1, mul=1),
    "elu": work(compare=1, exp=1, add=1, mul=1),
    "elu_backward": work(compare=1, add=1, mul=1),
    "celu": work(compare=1, exp=1, add=1, mul=2),
    "selu": work(compare=1, exp=1, add=1, mul=2),
    "sigmoid": work(exp=1, add=1, div=1),
    "sigmoid_backward": work(add=1, mul=2),
    "tanh": work(exp=1, add=2, mul=1, div=1),
    "tanh_backward": work(add=1, mul=2),
    "silu": work(exp=1, add=1, div=1, mul=1),
    "silu_backward": work(exp=1, add=3, div=1, mul=3),
    "gelu": work(exp=1, add=2, div=1, mul=4),
    "gelu_backward": work(exp=1, add=5, div=1, mul=8),
    "mish": work(exp=1, log=1, add=3, div=1, mul=2),
    "glu": work(exp=1, add=1, div=1, mul=1),
    "softplus": work(exp=1, add=1, log=1),
    "softplus_backward": work(exp=1, add=1, div=1, mul=1),
    "log_sigmoid": work(compare=1, exp=1, add=2, log=1),
    "log_sigmoid_backward": work(exp=1, add=2, div=1, mul=1),
    "hardswish": work(add=1, compare=2, mul=2),
    "hardswish_backward": work(add=1, compare=2, mul=2),
    "hardsigmoid": work(add=1, compare=2, mul=1),
    "hardsigmoid_backward": work(compare=2, mul=1),
    "softshrink": work(compare=2, add=1),
    "quantize": work(mul=1, add=1, compare=2),
    "pow": work(log=1, mul=1, exp=1),
    "rsqrt": work(sqrt=1, div=1),
    "sqrt_backward": work(div=1, mul=1),
    "div_backward": work(div=1, mul=2),
    "addcdiv": work(div=1, add=1),
    "addcmul": work(mul=1, add=1),
    "lerp": work(add=2, mul=1),
    "weight_norm": work(add=1, mul=2),
    "weight_norm_backward": work(add=2, mul=3),
    "fmod": work(div=1, mul=1, add=1),
    "remainder": work(div=1, mul=1, add=1),
    "floor_divide": work(div=1, add=1),
    "expm1": work(exp=1, add=1),
    "log1p": work(log=1, add=1),
    "log2": work(log=1, mul=1),
    "log10": work(log=1, mul=1),
    "logit": work(add=1, div=1, log=1),
    "logaddexp": work(compare=1, add=3, exp=1, log=1),
    "xlogy": work(log=1, mul=1),
    "erf": work(exp=1, add=6, div=1, mul=7),
    "erfinv": work(log=1, sqrt=1, add=8, mul=8),
    "sin": work(add=4, mul=4),
    "cos": work(add=4, mul=4),
    "tan": work(add=8, mul=8, div=1),
    "atan2": work(compare=2, add=4, mul=4, div=1),
})  # fmt: skip

# Per element of the input, and per output.
REDUCTIONS: Mapping[str, tuple[Work, Work]] = MappingProxyType({
    "sum": (work(add=1), ()),
    "cumsum": (work(add=1), ()),
    "product": (work(mul=1), ()),
    "mean": (work(add=1), work(mul=1)),
    "variance": (work(add=2, mul=1), work(add=1, mul=2)),
    "norm": (work(add=1, mul=1), work(sqrt=1)),
    "logsumexp": (work(compare=1, add=2, exp=1), work(log=1, add=1)),
    **{name: (work(compare=1), ()) for name in ("max", "min", "any", "all")},
})  # fmt: skip

# By (function, forward): statistics per element, then per set of statistics, and their use per element. The
# variance is E[x²] - E[x]². Batch norm folds weight and bias into one factor and one summand per channel and
# keeps two running statistics; the other norms apply weight and bias per element.
_ROWS = (work(add=2, mul=1), work(add=2, mul=3, sqrt=1, div=1), work(add=2, mul=2))
_ROWS_BACKWARD = (work(add=5, mul=4), work(mul=2), work(add=2, mul=2))
NORMS: Mapping[tuple[str, bool], tuple[Work, Work, Work]] = MappingProxyType({
    ("batch", True): (work(add=2, mul=1), work(add=5, mul=9, sqrt=1, div=1), work(add=1, mul=1)),
    ("batch", False): (work(add=3, mul=1), work(add=1, mul=8), work(add=2, mul=2)),
    ("rms", True): (work(add=1, mul=1), work(add=1, mul=1, sqrt=1, div=1), work(mul=2)),
    ("rms", False): (work(add=2, mul=4), work(mul=2), work(add=1, mul=2)),
    **{(name, True): _ROWS for name in ("layer", "group", "instance")},
    **{(name, False): _ROWS_BACKWARD for name in ("layer", "group", "instance")},
})  # fmt: skip
# Batch norm with given statistics: per channel, and per element.
FROZEN_NORM: tuple[Work, Work] = (work(add=2, mul=2, sqrt=1, div=1), work(add=1, mul=1))

# Forward per element and per row, backward per element and per row. Cross-entropy keeps its
# log-probabilities.
LOSSES: Mapping[str, tuple[Work, Work, Work, Work]] = MappingProxyType({
    "cross_entropy": (work(compare=1, add=3, exp=1), work(log=1, add=2), work(exp=1, mul=1), work(add=1)),
    "nll": ((), work(add=1), (), work(mul=1)),
    "mse": (work(add=2, mul=1), (), work(add=1, mul=1), ()),
    "l1": (work(add=2, compare=1), (), work(add=1, compare=1, mul=1), ()),
    "smooth_l1": (work(add=2, compare=2, mul=2), (), work(add=1, compare=2, mul=1), ()),
    "huber": (work(add=2, compare=2, mul=2), (), work(add=1, compare=2, mul=1), ()),
    "bce": (work(add=3, log=2, mul=2), (), work(add=2, mul=2, div=1), ()),
    "bce_with_logits": (
        work(add=4, compare=2, exp=1, log=1, mul=1), (), work(add=2, exp=1, div=1, mul=1), ()
    ),
    "soft_margin": (work(add=2, mul=1, exp=1, log=1), (), work(add=1, mul=3, exp=1, div=1), ()),
})  # fmt: skip

# By (function, forward), per hidden unit. LSTM: three sigmoids, two tanh; GRU: two sigmoids, one tanh. The
# input and the hidden product of a gate are added here. Backward works on the gates that forward kept.
CELLS: Mapping[tuple[str, bool], Work] = MappingProxyType({
    ("lstm", True): work(exp=5, div=5, add=12, mul=5),
    ("lstm", False): work(exp=1, div=1, add=8, mul=17),
    ("gru", True): work(exp=3, div=3, add=9, mul=3),
    ("gru", False): work(add=5, mul=11),
})  # fmt: skip

# Optimizer rules with a root and a division per element.
_ADAPTIVE = frozenset({"adam", "adamw", "adamax", "amsgrad", "nadam", "radam", "rmsprop", "adagrad"})


def elementwise_work(function: str) -> Work | None:
    """Primitives per element, or None for an unknown function.

    The backward of a function without a row of its own costs as much as the function (its derivative is about
    as long) and one product with the incoming gradient.

    >>> elementwise_work("erf_backward") == together(elementwise_work("erf"), work(mul=1))
    True
    """
    if function in ELEMENTWISE:
        return ELEMENTWISE[function]
    forward = ELEMENTWISE.get(function.removesuffix("_backward"))
    return None if forward is None else together(forward, work(mul=1))


def update_work(rule: str, operations: int) -> Work:
    """Primitives per element of an optimizer rule with ``operations`` in all.

    An adaptive rule has one root and one division; what is left are products and sums in equal parts.

    >>> update_work("sgd_momentum", 6), update_work("adamw", 14)
    ((('add', 3), ('mul', 3)), (('add', 6), ('mul', 6), ('div', 1), ('sqrt', 1)))
    """
    fixed = work(sqrt=1, div=1) if rule in _ADAPTIVE else work()
    rest = max(0, operations - len(fixed))
    return together(fixed, work(mul=rest - rest // 2, add=rest // 2))
