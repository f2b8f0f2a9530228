"""Depthwise convolutions whose gradient is quick in bfloat16 on a CPU: for races and trainings without a GPU.

With torch 2.14 a processor that has AVX-512 BF16 convolves about three times as fast in bfloat16 as in float32, but
for two gradients of depthwise convolutions, which fall back to loops that take ten to fifty times as long: that of the
input at stride 2, and that of a 5 × 5 kernel. Both are put here in terms of the quick ones.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

gradient_of = torch.ops.aten.convolution_backward.default
Pair = tuple[int, int]


class DepthwiseConvolution(torch.autograd.Function):
    """`F.conv2d(x, weight, None, stride, padding, 1, groups=C)` for x (N, C, H, W), weight (C, 1, K, K), K = 3 or 5."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = input_gradient(gradient, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        of_weight = weight_gradient(gradient, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None, None


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Pair) -> Tensor:
    """That of stride 1, after zeros were put where stride 1 would have computed more."""
    if stride > 1:
        sides = (side + 2 * pad - weight.shape[-1] + 1 for side, pad in zip(x.shape[2:], padding, strict=True))
        between = gradient.new_zeros(*x.shape[:2], *sides).contiguous(memory_format=torch.channels_last)
        between[:, :, ::stride, ::stride] = gradient
        gradient = between  # (N, C, H, W) at stride 1
    return gradient_of(gradient, x, weight, None, *convolution(1, padding, len(weight)), [True, False, False])[0]


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Pair) -> Tensor:
    """3 × 3: torch's own. 5 × 5: four overlapping corners of 3 × 3, each for an input that begins elsewhere."""
    if weight.shape[-1] == 3:
        how = convolution(stride, padding, len(weight))
        return gradient_of(gradient, x, weight, None, *how, [False, True, False])[1]
    result, corner = torch.empty_like(weight), weight[:, :, :3, :3].contiguous(memory_format=torch.channels_last)
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = ((cells - 1) * stride + 3 for cells in gradient.shape[2:])  # what 3 × 3 kernels see
    for top in (0, 2):
        for left in (0, 2):
            seen = padded[:, :, top : top + height, left : left + width]
            seen = seen.contiguous(memory_format=torch.channels_last)
            result[:, :, top : top + 3, left : left + 3] = weight_gradient(gradient, seen, corner, stride, (0, 0))
    return result


def convolution(stride: int, padding: Pair, groups: int) -> tuple:
    """The arguments that aten wants: stride, padding, dilation, transposed, output padding, groups."""
    return [stride] * 2, list(padding), [1, 1], False, [0, 0], groups


def use_quick_gradients(network: nn.Module) -> None:
    """Let the depthwise convolutions of a network compute their gradients in this way while autocast is on."""
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels == conv.out_channels > 1:
            assert conv.kernel_size in ((3, 3), (5, 5)) and conv.bias is None and conv.padding_mode == "zeros"
            conv.forward = partial(forward, conv, conv.forward)


def forward(conv: nn.Conv2d, plain: Callable, x: Tensor) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return plain(x)
    if isinstance(conv, Conv2dSame):
        x = pad_same(x, conv.kernel_size, conv.stride)
    dtype = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        return DepthwiseConvolution.apply(x.to(dtype), conv.weight.to(dtype), conv.stride[0], conv.padding)
