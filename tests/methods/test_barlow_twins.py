"""Barlow Twins' loss against lightly's and its formula, in both forms, and across workers."""

import pytest
import torch
from torch import Tensor

from eagleray_methods.barlow_twins import cross_correlation
from gradients import assert_two_are_one, of_own_part, with_gradients
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16", "method.projection=16", "method.scale=1"]
SHAPES = [(24, 6), (6, 24)]  # through the features' matrix, through the images' matrices


def embeddings(count: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two views; the later half of the images unlike the earlier one, and some features alike."""
    generator = torch.Generator().manual_seed(5)
    first = torch.randn(count, width, dtype=dtype, generator=generator)
    first[count // 2 :] = first[count // 2 :] * 4 + 1.5
    first[:, 1] += first[:, 0]
    return first, first + 0.7 * torch.randn(count, width, dtype=dtype, generator=generator)


def weighted(first: Tensor, second: Tensor) -> Tensor:
    invariance, redundancy = cross_correlation(first, second)
    return invariance + 0.0051 * redundancy


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_barlow_twins_is_lightlys_loss(shape: tuple[int, int], dtype: torch.dtype):
    from lightly.loss import BarlowTwinsLoss

    pair = embeddings(*shape, dtype)
    ours, theirs = with_gradients(weighted, *pair), with_gradients(BarlowTwinsLoss(lambda_param=0.0051), *pair)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_barlow_twins_is_the_papers_sums_over_pairs_of_features(shape: tuple[int, int]):
    first, second = embeddings(*shape)
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (first, second))
    invariance = redundancy = torch.zeros((), dtype=torch.float64)
    for i in range(shape[1]):
        for j in range(shape[1]):
            correlation = sum(x * y for x, y in zip(a[:, i], b[:, j], strict=True)) / shape[0]
            invariance = invariance + (1 - correlation) ** 2 * (i == j)
            redundancy = redundancy + correlation**2 * (i != j)
    torch.testing.assert_close(cross_correlation(first, second), (invariance, redundancy), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_barlow_twins_does_not_mind_scale_or_shift_of_a_feature_or_order(shape: tuple[int, int]):
    first, second = embeddings(*shape)
    loss = weighted(first, second)
    generator = torch.Generator().manual_seed(0)
    order, features = torch.randperm(shape[0], generator=generator), torch.randperm(shape[1], generator=generator)
    scale = 1 + torch.rand(shape[1], dtype=torch.float64, generator=generator)
    for same in (
        weighted(second, first),
        weighted(first[order], second[order]),
        weighted(first[:, features], second[:, features]),
        weighted(first * scale + 3, second - scale),
    ):
        torch.testing.assert_close(same, loss, rtol=1e-4, atol=1e-4)  # the norm's 1e-5 is not scaled along
    assert weighted(first, second[order]) > loss * 1.1  # and it does mind who belongs to whom


def test_barlow_twins_is_nothing_for_equal_views_of_independent_features():
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    invariance, redundancy = cross_correlation(z, z)
    assert float(invariance) == pytest.approx(0, abs=1e-8)
    assert float(redundancy) == pytest.approx(0, abs=1e-8)


def test_barlow_twins_stays_finite_for_a_feature_that_is_constant():
    first, second = embeddings(8, 6)
    first[:, 0] = 3
    assert all(result.isfinite().all() for result in with_gradients(weighted, first, second))


@pytest.mark.parametrize("shape", SHAPES)
def test_barlow_twins_is_float32_inside_bf16_autocast(shape: tuple[int, int]):
    first, second = embeddings(*shape, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = cross_correlation(first, second)
    torch.testing.assert_close(terms, cross_correlation(first.float(), second.float()), rtol=1e-6, atol=1e-6)


def own_part(count: int, width: int) -> list[Tensor]:
    return of_own_part(weighted, *embeddings(count, width))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_barlow_twins_of_two_workers_is_that_of_one(shape: tuple[int, int]):
    assert_two_are_one(own_part, *shape, rtol=1e-9)


def test_barlow_twins_weighs_and_reports_its_terms():
    method = small("barlow_twins", "method.redundancy=0.5", "method.scale=0.1").train()
    result = method(batch_of(method), NOW)
    invariance, redundancy = cross_correlation(*result.embeddings)
    assert result.metrics == {"invariance": invariance, "redundancy": redundancy}
    torch.testing.assert_close(result.loss.detach(), 0.1 * (invariance + 0.5 * redundancy))
