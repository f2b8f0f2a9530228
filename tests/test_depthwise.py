"""Protects the quick gradients of depthwise convolutions that the race uses on CPUs: they are those of autograd."""

import pytest
import timm
import torch
import torch.nn.functional as F
from depthwise import DepthwiseConvolution, use_quick_gradients


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(12, 9), (7, 16)])
@pytest.mark.parametrize("padded", [True, False])
def test_gradients_are_those_of_torch(size, stride, shape, padded):
    torch.manual_seed(0)
    x = torch.randn(2, 6, *shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, size, size, dtype=torch.float64, requires_grad=True)
    padding = (size // 2,) * 2 if padded else (0, 0)
    wanted = F.conv2d(x, weight, None, stride, padding, 1, 6)
    ours = DepthwiseConvolution.apply(x, weight, stride, padding)
    assert torch.equal(wanted, ours)
    gradient = torch.randn_like(wanted)
    for one, other in zip(*(torch.autograd.grad(y, (x, weight), gradient) for y in (wanted, ours)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_network_computes_the_same_with_them_and_is_itself_without_autocast():
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool="").eval()
    x = torch.randn(1, 3, 64, 64)

    def outputs_and_gradients():
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = network(x)
        y.float().square().mean().backward()
        return y.detach().float(), {name: p.grad.clone() for name, p in network.named_parameters()}

    with torch.no_grad():
        before = network(x)
    (y, plain), _ = outputs_and_gradients(), use_quick_gradients(network)
    quick_y, quick = outputs_and_gradients()
    torch.testing.assert_close(quick_y, y)
    for name, gradient in plain.items():
        assert (quick[name] - gradient).norm() <= 0.03 * gradient.norm(), name  # bfloat16 has three digits
    with torch.no_grad():
        assert torch.equal(network(x), before)
