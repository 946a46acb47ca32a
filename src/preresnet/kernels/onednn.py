"""What the library of convolutions beneath PyTorch, oneDNN, computes on this CPU: tried once for each type.

Neither the processor's flags nor PyTorch's own predicate tell it alone: oneDNN may have been told by
``ONEDNN_MAX_CPU_ISA`` to use less, and what it does for bfloat16 without AVX-512 differs between versions.
"""

import os
from functools import cache

import torch
from torch import Tensor

# Levels that multiply bfloat16 in float32, if at all.
_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def multiplies_bfloat16() -> bool:
    """Whether convolutions may use the processor's own products of bfloat16: only if it has them and oneDNN may."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    return limit not in _WITHOUT_BFLOAT16 and convolves(torch.bfloat16)


@cache
def convolves(dtype: torch.dtype) -> bool:
    """Whether the operations of `convolve` work for a type; without AVX-512, they mostly do not for bfloat16."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = (torch.zeros(size, dtype=dtype) for size in ((1, 16, 4, 4), (16, 16, 3, 3), (16,)))
    settings = [1, 1], [1, 1], [1, 1], 1
    try:
        with torch.inference_mode():
            convolve(x, reorder(x, weight, *settings), bias, *settings, plus=None, relu=True)
    except (RuntimeError, AttributeError):  # AttributeError: not in this build of PyTorch
        return False
    return True


def reorder(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """Weights in oneDNN's own order, for inputs like x."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, list(x.shape))


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    *,
    plus: Tensor | None,
    relu: bool,
) -> Tensor:
    """conv(x) + bias, and then either a ReLU or an addition, as one operation; ``weight`` is what `reorder` returns."""
    settings = weight, bias, padding, stride, dilation, groups
    if plus is None:
        return torch.ops.mkldnn._convolution_pointwise(x, *settings, "relu" if relu else "none", [], None)
    assert not relu
    return torch.ops.mkldnn._convolution_pointwise.binary(x, plus, *settings, "add", 1.0, None, [], None)
