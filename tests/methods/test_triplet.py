"""The triplet loss against a slow search for its triplets, and against torch's own loss on them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eagleray_methods.triplet import semi_hard
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16", "method.projection=8"]


def embeddings(images: int, likeness: float = 1.0) -> Tensor:
    """First views, and second ones that are as much like them; -1: nearly their opposites."""
    draw = torch.Generator().manual_seed(4)
    first, noise = torch.randn(2, images, 3, dtype=torch.float64, generator=draw)
    return torch.cat([first, likeness * first + 0.3 * noise])


def slow(rows: Tensor) -> list[tuple[int, int, int]]:
    """Anchor, positive and negative as section 3.2 words it, in plain Python."""
    units = [row / row.norm() for row in rows.detach()]
    count = len(units)

    def distance(a: int, b: int) -> float:
        return float((units[a] - units[b]).square().sum())

    triplets = []
    for anchor in range(count):
        positive = (anchor + count // 2) % count
        strangers = [i for i in range(count) if i not in (anchor, positive)]
        beyond = [i for i in strangers if distance(anchor, i) > distance(anchor, positive)]
        if beyond:
            negative = min(beyond, key=lambda i, a=anchor: distance(a, i))
        else:
            negative = max(strangers, key=lambda i, a=anchor: distance(a, i))
        triplets.append((anchor, positive, negative))
    return triplets


@pytest.mark.parametrize("likeness", [1.0, 0.3, -1.0])
def test_the_triplets_are_those_of_a_slow_search_and_the_loss_is_torchs(likeness: float):
    rows = embeddings(9, likeness).requires_grad_()
    positive, negative = semi_hard(rows)
    ours = (positive - negative + 0.2).relu().mean()
    anchors, positives, negatives = (torch.tensor(each) for each in zip(*slow(rows), strict=True))
    units = F.normalize(rows, dim=1)
    theirs = F.triplet_margin_with_distance_loss(
        units[anchors],
        units[positives],
        units[negatives],
        distance_function=lambda a, b: (a - b).square().sum(1),
        margin=0.2,
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(loss, rows)[0] for loss in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_both_kinds_of_negative_occur_in_that_search():
    """Else the test above would see one branch alone."""
    positive, negative = semi_hard(embeddings(9, -1.0))
    assert (negative > positive).any()
    assert (negative < positive).any()


def test_the_loss_minds_neither_scale_nor_rotation_nor_the_order_of_images_and_views():
    rows = embeddings(8)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    reordered = torch.cat([rows[8:][order], rows[:8][order]])
    positive, negative = semi_hard(rows)
    loss = (positive - negative + 0.5).relu().mean()
    for same in (rows * 3, rows @ turn, reordered):
        positive, negative = semi_hard(same)
        torch.testing.assert_close((positive - negative + 0.5).relu().mean(), loss)


def test_collapsed_embeddings_cost_the_margin():
    positive, negative = semi_hard(torch.ones(6, 4))
    assert torch.equal(positive, negative)


def test_distances_are_float32_inside_bf16_autocast():
    rows = embeddings(6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        positive, negative = semi_hard(rows)
    assert positive.dtype == negative.dtype == torch.float32
    torch.testing.assert_close(positive, semi_hard(rows.float())[0])


def test_what_it_says_of_its_triplets():
    method = small("triplet", "method.margin=0.05", "seed=2").train()  # a draw in which some are hard, some harder
    result = method(batch_of(method), NOW)
    rows = torch.cat(result.embeddings)
    units = [row / row.norm() for row in rows]
    gaps = [float((units[a] - units[n]).norm() ** 2 - (units[a] - units[p]).norm() ** 2) for a, p, n in slow(rows)]
    active, hard = (sum(low < gap < 0.05 for gap in gaps) / len(gaps) for low in (-4, 0))
    assert 0 < hard < active < 1  # else the two were one number, or none
    assert float(result.metrics["active"]) == pytest.approx(active)
    assert float(result.metrics["semi_hard"]) == pytest.approx(hard)
    assert float(result.loss.detach()) == pytest.approx(sum(max(0.0, 0.05 - gap) for gap in gaps) / len(gaps))
