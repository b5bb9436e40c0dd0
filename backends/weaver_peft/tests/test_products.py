import pytest
import torch
from torch.nn import functional as F
from weaver_peft.products import LARGE_WEIGHT, _onednn_is_faster, frozen_linear


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(1, 1, 24), (1, 7, 24), (40, 24), (2, 3, 24)])
@pytest.mark.parametrize("bias", [None, random(10)])
def test_products_and_gradients_are_those_of_linear(shape, bias):
    weight, gradient = random(10, 24), random(*shape[:-1], 10)
    results = []
    for linear in (frozen_linear, F.linear):
        input = random(*shape).requires_grad_()
        output = linear(input, weight, bias)
        output.backward(gradient)
        results.append((output.detach(), input.grad))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_it_is_exact_to_float32():
    input, weight = random(64, 512), random(300, 512)
    exact = input.double() @ weight.double().T
    error, usual = ((linear(input, weight) - exact).abs().max() for linear in (frozen_linear, F.linear))
    assert error < 4 * usual < 1e-3  # oneDNN adds up in longer chains; both are float32 throughout


def test_batches_and_large_weights_go_to_onednn_and_the_rest_where_torch_sends_it():
    large = torch.empty(1, device="cpu").expand(LARGE_WEIGHT // 64, 64)
    small = random(10, 64)
    assert torch.backends.mkldnn.is_available()
    assert _onednn_is_faster(random(4, 64), small)
    assert _onednn_is_faster(random(1, 64), large)
    assert not _onednn_is_faster(random(1, 3, 64), small)
    assert not _onednn_is_faster(random(0, 64), large)
    assert not _onednn_is_faster(random(9, 64).bfloat16(), small.bfloat16())
