"""VICReg's loss against lightly's and its formula, in both forms, and across workers."""

import pytest
import torch
from torch import Tensor

from eagleray_methods.vicreg import vicreg_terms
from gradients import assert_two_are_one, of_own_part, with_gradients
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16", "method.projection=16"]
SHAPES = [(24, 6), (6, 24)]  # through the features' matrix, through the images' matrix


def embeddings(count: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two views; the later half of the images unlike the earlier one, features alike, and some that hardly vary."""
    generator = torch.Generator().manual_seed(5)
    first = torch.randn(count, width, dtype=dtype, generator=generator)
    first[count // 2 :] = first[count // 2 :] * 2 + 0.5
    first[:, 1] += first[:, 0]
    first[:, 2:4] *= 0.1
    return first, first + 0.3 * torch.randn(count, width, dtype=dtype, generator=generator)


def weighted(first: Tensor, second: Tensor) -> Tensor:
    invariance, variance, covariance = vicreg_terms(first, second)
    return 25 * invariance + 25 * variance + covariance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_vicreg_is_lightlys_loss(shape: tuple[int, int], dtype: torch.dtype):
    from lightly.loss import VICRegLoss

    pair = embeddings(*shape, dtype)
    ours, theirs = with_gradients(weighted, *pair), with_gradients(VICRegLoss(), *pair)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_vicreg_is_the_papers_sums(shape: tuple[int, int]):
    first, second = embeddings(*shape)
    count, width = shape
    invariance = sum((x - y).square().sum() for x, y in zip(first, second, strict=True)) / (count * width)
    variance = covariance = torch.zeros((), dtype=torch.float64)
    for z in (first, second):
        centred = z - z.mean(0)
        matrix = sum(torch.outer(row, row) for row in centred) / (count - 1)
        assert isinstance(matrix, Tensor)
        for i in range(width):
            variance = variance + (1 - (matrix[i, i] + 1e-4).sqrt()).clamp(min=0) / width / 2
            covariance = covariance + sum(matrix[i, j] ** 2 for j in range(width) if j != i) / width
    expected = (invariance, variance, covariance)
    torch.testing.assert_close(vicreg_terms(first, second), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_vicreg_does_not_mind_a_shift_of_both_views_the_order_or_signs(shape: tuple[int, int]):
    first, second = embeddings(*shape)
    loss = weighted(first, second)
    generator = torch.Generator().manual_seed(0)
    order, features = torch.randperm(shape[0], generator=generator), torch.randperm(shape[1], generator=generator)
    for same in (
        weighted(second, first),
        weighted(first[order], second[order]),
        weighted(first[:, features], second[:, features]),
        weighted(first + 3, second + 3),
        weighted(-first, -second),
    ):
        torch.testing.assert_close(same, loss)
    assert weighted(first, second[order]) > loss * 1.1  # and it does mind who belongs to whom


def test_vicreg_is_nothing_for_equal_views_of_independent_features_that_vary():
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    torch.testing.assert_close(vicreg_terms(z, z), (torch.zeros(()).double(),) * 3)


def test_vicreg_of_collapsed_embeddings_has_a_finite_gradient():
    same = torch.ones(6, 24, dtype=torch.float64)
    loss, *gradients = with_gradients(weighted, same, same)
    assert float(loss) == pytest.approx(25 * (1 - 0.01))  # the root of 1e-4 is all the spread there is
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("shape", SHAPES)
def test_vicreg_is_float32_inside_bf16_autocast(shape: tuple[int, int]):
    first, second = embeddings(*shape, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = vicreg_terms(first, second)
    torch.testing.assert_close(terms, vicreg_terms(first.float(), second.float()), rtol=1e-6, atol=1e-6)


def own_part(count: int, width: int) -> list[Tensor]:
    return of_own_part(weighted, *embeddings(count, width))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_vicreg_of_two_workers_is_that_of_one(shape: tuple[int, int]):
    assert_two_are_one(own_part, *shape, rtol=1e-9)


def test_vicreg_weighs_and_reports_its_terms():
    method = small("vicreg", "method.invariance=2", "method.variance=3", "method.covariance=5").train()
    result = method(batch_of(method), NOW)
    invariance, variance, covariance = vicreg_terms(*result.embeddings)
    assert result.metrics == {"invariance": invariance, "variance": variance, "covariance": covariance}
    torch.testing.assert_close(result.loss.detach(), 2 * invariance + 3 * variance + 5 * covariance)
