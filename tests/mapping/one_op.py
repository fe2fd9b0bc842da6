"""Traces of one op, for tests of the mapping."""

from __future__ import annotations

from jouletrace.trace.model import Conv, Gemm, Header, Op, Tensor, Trace


def conv_trace(nest: Conv, *, bits: int = 32, first_layer: bool = False) -> Trace:
    """One convolution in one role, with tensors of the right sizes."""
    x = Tensor("x", (nest.N, nest.G * nest.C, nest.IY, nest.IX), bits, "fp", "input" if first_layer else "activation")
    w = Tensor("w", (nest.G * nest.K, nest.C, nest.R, nest.S), bits, "fp", "param")
    y_shape = (nest.N, nest.G * nest.K, nest.OY, nest.OX)
    if nest.role == "forward":
        tensors, reads = (x, w, Tensor("y", y_shape, bits, "fp", "activation")), ("x", "w")
    elif nest.role == "backward_data":
        gy = Tensor("gy", y_shape, bits, "fp", "gradient")
        tensors, reads = (gy, w, Tensor("gx", x.shape, bits, "fp", "gradient")), ("gy", "w")
    else:
        gy = Tensor("gy", y_shape, bits, "fp", "gradient")
        tensors, reads = (gy, x, Tensor("gw", w.shape, bits, "fp", "weight_gradient")), ("gy", "x")
    op = Op(f"conv:{nest.role}", nest.role, "conv", nest, reads, (tensors[2].name,))
    return Trace(Header("one-op", nest.N), tensors, (op,))


def gemm_trace(nest: Gemm, *, bits: int = 32) -> Trace:
    """One matrix product with a parameter as its second operand."""
    a = Tensor("a", (nest.B, nest.M, nest.K), bits, "fp", "activation")
    b = Tensor("b", (nest.B, nest.K, nest.N), bits, "fp", "param")
    c = Tensor("c", (nest.B, nest.M, nest.N), bits, "fp", "activation")
    op = Op("fc:forward", "forward", "fc", nest, ("a", "b"), ("c",))
    return Trace(Header("one-op", nest.M), (a, b, c), (op,))


def square_conv(
    M: int, N: int, R: int, K: int, S: int = 1, batch: int = 1, role: str = "forward", groups: int = 1, C: int = 0
) -> Conv:
    """A convolution by its output size, padded so that stride 1 keeps the map."""
    columns = C or R
    pad = (K - 1) // 2
    IY, IX = (R - 1) * S + K - 2 * pad, (columns - 1) * S + K - 2 * pad
    return Conv(
        batch, M // groups, N // groups, R, columns, K, K, groups, IY, IX, (S, S), (pad,) * 4, (1, 1), role  # type: ignore[arg-type]
    )
