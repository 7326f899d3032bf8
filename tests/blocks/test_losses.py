"""The losses against the papers' equations written out, against lightly, and across workers."""

import pytest
import torch
from torch import Tensor

from eagleray.blocks import losses
from eagleray.blocks.distributed import rank, world_size
from eagleray.blocks.losses import cosine_loss, cross_view_loss, info_nce, nt_xent, squared_norm_of_product
from eagleray.runs.processes import two_processes
from gradients import assert_two_are_one, of_own_part, with_gradients


def embeddings(count: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two views, the second near the first; the later half of the images unlike the earlier one."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(count, width, dtype=dtype, generator=generator)
    first[count // 2 :] = first[count // 2 :] * 4 + 1.5
    second = first + 0.7 * torch.randn(count, width, dtype=dtype, generator=generator)
    return first, second


def equation_one(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's eq. 1, pair by pair as it is printed."""
    z = [row / row.norm() for row in torch.cat([first, second])]
    count = len(first)
    loss = first.new_zeros(())
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        scores = [(z[i] @ z[k] / temperature).exp() for k in range(2 * count)]
        loss = loss - torch.log(scores[j] / sum(score for k, score in enumerate(scores) if k != i))
    return loss / (2 * count)


@pytest.fixture(params=[2**21, 30], ids=["one block", "blocks of three rows"])
def block(request, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent_is_equation_one(temperature):
    pair = embeddings(5, 4)
    ours = with_gradients(lambda a, b: nt_xent(a, b, temperature), *pair)
    paper = with_gradients(lambda a, b: equation_one(a, b, temperature), *pair)
    torch.testing.assert_close(ours, paper, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("block")
def test_nt_xent_is_lightlys():
    from lightly.loss import NTXentLoss  # here: the two processes import this file too, and lightly is slow

    pair = embeddings(24, 16, torch.float32)
    ours = with_gradients(lambda a, b: nt_xent(a, b, 0.2), *pair)
    theirs = with_gradients(NTXentLoss(temperature=0.2), *pair)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("block")
def test_nt_xent_passes_gradcheck():
    first, second = (x.requires_grad_() for x in embeddings(5, 3))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3), (first, second))


@pytest.mark.usefixtures("block")
def test_nt_xent_with_a_queue_has_its_rows_as_further_negatives():
    first, second = embeddings(5, 4)
    queue = embeddings(14, 4)[1][:7] * 3
    ours = with_gradients(lambda a, b: nt_xent(a, b, 0.3, queue), first, second)
    z = torch.nn.functional.normalize(torch.cat([first, second, queue]), dim=1)
    with torch.no_grad():
        exponents = (z @ z.T / 0.3).exp()
        expected = sum(
            torch.log(exponents[i].sum() - exponents[i, i]) - torch.log(exponents[i, (i + 5) % 10]) for i in range(10)
        )
    torch.testing.assert_close(ours[0], expected / 10, rtol=1e-10, atol=1e-10)
    leaves = [x.clone().requires_grad_() for x in (first, second)]
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3, queue), leaves)
    nothing = with_gradients(lambda a, b: nt_xent(a, b, 0.3, queue[:0]), first, second)
    torch.testing.assert_close(nothing, with_gradients(lambda a, b: nt_xent(a, b, 0.3), first, second))


def test_nt_xent_does_not_mind_order_of_views_scale_or_order_of_images():
    first, second = embeddings(7, 5)
    loss = nt_xent(first, second, 0.2)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    for same in (nt_xent(second, first, 0.2), nt_xent(3 * first, 0.1 * second, 0.2)):
        torch.testing.assert_close(same, loss)
    torch.testing.assert_close(nt_xent(first[order], second[order], 0.2), loss)
    assert nt_xent(first, second[order], 0.2) > loss + 0.1  # and it does mind who belongs to whom


def test_nt_xent_of_collapsed_embeddings_is_the_logarithm_of_the_choices():
    same = torch.ones(8, 3)
    torch.testing.assert_close(nt_xent(same, same, 0.1), torch.tensor(15.0).log())
    assert nt_xent(torch.zeros(8, 3), torch.zeros(8, 3), 0.1).isfinite()


def test_nt_xent_stays_finite_at_a_tiny_temperature():
    first, second = embeddings(6, 4, torch.float32)
    results = with_gradients(lambda a, b: nt_xent(a, b, 1e-3), first, -second)
    assert all(result.isfinite().all() for result in results)
    expected = with_gradients(lambda a, b: nt_xent(a, b, 1e-3), first.double(), -second.double())
    torch.testing.assert_close(results[0].double(), expected[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss_of", [lambda a, b: nt_xent(a, b, 0.2), cosine_loss], ids=["nt_xent", "cosine"])
def test_losses_are_float32_inside_bf16_autocast(loss_of):
    first, second = embeddings(16, 8, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient, _ = with_gradients(loss_of, first, second)
    assert (loss.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(loss, loss_of(first.float(), second.float()), rtol=1e-6, atol=1e-6)


def test_nt_xent_holds_no_square_matrix():
    first, second = embeddings(1024, 8, torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        nt_xent(first, second, 0.2)
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 4 * (2 * 1024) ** 2


def own_part() -> list[Tensor]:
    return of_own_part(lambda a, b: nt_xent(a, b, 0.2), *embeddings(6, 4))


@pytest.mark.slow
def test_nt_xent_of_two_workers_is_that_of_one():
    assert_two_are_one(own_part)


def test_cosine_loss_is_the_squared_distance_on_the_sphere():
    from lightly.loss import NegativeCosineSimilarity

    prediction, target = embeddings(9, 5)
    ours = with_gradients(cosine_loss, prediction, target)
    distance = with_gradients(
        lambda p, z: (p / p.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)).pow(2).sum(1).mean(),
        prediction,
        target,
    )
    torch.testing.assert_close(ours, distance, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours[0], 2 + 2 * NegativeCosineSimilarity()(prediction, target))
    torch.testing.assert_close(cosine_loss(prediction, -prediction), torch.tensor(4.0).double())


def products(count: int, width: int, same: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """This worker's share of ‖AᵀB‖² with its gradients."""
    pair = [x.chunk(world_size())[rank()] for x in embeddings(count, width, dtype)]
    if same:
        return with_gradients(lambda a: squared_norm_of_product(a, a), pair[0])
    return with_gradients(squared_norm_of_product, *pair)


@pytest.mark.parametrize("same", [False, True], ids=["two", "one"])
@pytest.mark.parametrize("shape", [(8, 100), (100, 8), (8, 12)])
def test_the_norm_of_a_product_is_the_same_through_features_and_through_images(shape: tuple[int, int], same: bool):
    first, second = embeddings(*shape)
    if same:
        direct = with_gradients(lambda a: (a.T @ a).square().sum(), first)
    else:
        direct = with_gradients(lambda a, b: (a.T @ b).square().sum(), first, second)
    torch.testing.assert_close(products(*shape, same), direct, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 100), (100, 8)])
def test_the_norm_of_a_product_of_two_workers_is_that_of_one(shape: tuple[int, int]):
    left, right = two_processes(products, *shape, False)
    alone = products(*shape, False)
    torch.testing.assert_close([left[0], right[0]], [alone[0], alone[0]], rtol=1e-10, atol=1e-10)
    joined = [torch.cat(parts) / 2 for parts in zip(left[1:], right[1:], strict=True)]
    torch.testing.assert_close(joined, alone[1:], rtol=1e-10, atol=1e-10)


def test_the_norm_of_a_product_of_wide_embeddings_is_right_in_float32_and_forms_no_matrix_of_features():
    first, second = embeddings(64, 2048, torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        ours = with_gradients(squared_norm_of_product, first, second)
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 4 * 2048**2
    direct = with_gradients(lambda a, b: (a.T @ b).square().sum(), first.double(), second.double())
    for found, expected in zip(ours, direct, strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm()


def queued(count: int = 11, width: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, width, dtype=dtype, generator=torch.Generator().manual_seed(8)) * 2 + 0.5


def moco_equation_one(anchors: Tensor, positives: Tensor, temperature: float, negatives: Tensor | None) -> Tensor:
    """MoCo's eq. 1 query by query, or with the other positives in place of the queue's rows."""
    loss = anchors.new_zeros(())
    for i, q in enumerate(anchors):
        others = [k for j, k in enumerate(positives) if j != i] if negatives is None else negatives
        near, *far = [(torch.cosine_similarity(q, k, dim=0) / temperature).exp() for k in (positives[i], *others)]
        loss = loss - torch.log(near / (near + sum(far)))
    return loss / len(anchors)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("negatives", [None, queued()], ids=["batch", "queue"])
def test_info_nce_is_mocos_equation_one(negatives: Tensor | None, temperature: float):
    pair = embeddings(5, 4)
    ours = with_gradients(lambda a, b: info_nce(a, b, temperature, negatives), *pair)
    paper = with_gradients(lambda a, b: moco_equation_one(a, b, temperature, negatives), *pair)
    torch.testing.assert_close(ours, paper, rtol=1e-10, atol=1e-10)


def test_info_nce_with_a_queue_is_lightlys():
    from lightly.loss import NTXentLoss

    theirs_of = NTXentLoss(temperature=0.2, memory_bank_size=(40, 16))
    theirs_of.memory_bank.bank = torch.nn.functional.normalize(queued(40, 16, torch.float32), dim=1)
    pair = embeddings(24, 16, torch.float32)
    ours = with_gradients(lambda a, b: info_nce(a, b, 0.2, queued(40, 16, torch.float32)), *pair)
    theirs = with_gradients(theirs_of, *pair)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("negatives", [None, queued(width=5)], ids=["batch", "queue"])
def test_info_nce_does_not_mind_scale_or_order_and_minds_who_belongs_to_whom(negatives: Tensor | None):
    anchors, positives = embeddings(7, 5)
    loss, order = info_nce(anchors, positives, 0.2, negatives), torch.randperm(7)
    more = None if negatives is None else 3 * negatives.flip(0)
    torch.testing.assert_close(info_nce(2 * anchors[order], 5 * positives[order], 0.2, more), loss)
    assert info_nce(anchors, positives.roll(1, 0), 0.2, negatives) > loss + 0.1


@pytest.mark.parametrize("negatives", [None, queued(9, 8, torch.float32)], ids=["batch", "queue"])
def test_info_nce_is_float32_inside_bf16_autocast(negatives: Tensor | None):
    first, second = embeddings(16, 8, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(first, second, 0.1, negatives)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, info_nce(first.float(), second.float(), 0.1, negatives), rtol=1e-6, atol=1e-6)


def test_a_queue_may_be_overwritten_before_the_backward_pass():
    first, second = embeddings(5, 4)
    expected = with_gradients(lambda a, b: info_nce(a, b, 0.2, queued()), first, second)
    rows = queued()

    def loss_of(anchors: Tensor, positives: Tensor) -> Tensor:
        loss = info_nce(anchors, positives, 0.2, rows)
        rows.zero_()
        return loss

    torch.testing.assert_close(with_gradients(loss_of, first, second), expected)


def info_nce_own_part(with_queue: bool) -> list[Tensor]:
    return of_own_part(lambda a, b: info_nce(a, b, 0.2, queued() if with_queue else None), *embeddings(6, 4))


@pytest.mark.slow
@pytest.mark.parametrize("with_queue", [False, True], ids=["batch", "queue"])
def test_info_nce_of_two_workers_is_that_of_one(with_queue: bool):
    assert_two_are_one(info_nce_own_part, with_queue)


def views_of(count: int, width: int, views: int) -> tuple[Tensor, Tensor]:
    """Probabilities of two views, and logits of all."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(views, count, width, dtype=torch.float64, generator=generator)
    targets = torch.randn(2, count, width, dtype=torch.float64, generator=generator).softmax(-1)
    return targets, logits


@pytest.mark.parametrize("views", [2, 5])
def test_the_loss_across_views_is_the_mean_over_pairs_of_two_views(views: int):
    targets, logits = views_of(3, 4, views)
    found, gradient = with_gradients(lambda x: cross_view_loss(targets, x, 0.2), logits)

    def written_out(x: Tensor) -> Tensor:
        pairs = []
        for t in range(2):
            for v in (v for v in range(views) if v != t):
                for i in range(3):
                    p = (x[v, i] / 0.2).exp() / (x[v, i] / 0.2).exp().sum()
                    pairs.append(-(targets[t, i] * p.log()).sum())
        return torch.stack(pairs).mean()

    torch.testing.assert_close([found, gradient], with_gradients(written_out, logits), rtol=1e-10, atol=1e-10)


def test_the_loss_across_views_does_not_mind_what_a_softmax_does_not_see():
    targets, logits = views_of(6, 5, 4)
    loss = cross_view_loss(targets, logits, 0.1)
    images, prototypes = torch.tensor([3, 1, 0, 5, 4, 2]), torch.tensor([1, 4, 0, 2, 3])
    torch.testing.assert_close(cross_view_loss(targets, logits + torch.randn(4, 6, 1), 0.1), loss)
    torch.testing.assert_close(cross_view_loss(targets[:, images], logits[:, images], 0.1), loss)
    torch.testing.assert_close(cross_view_loss(targets[..., prototypes], logits[..., prototypes], 0.1), loss)
    torch.testing.assert_close(cross_view_loss(targets, logits[[0, 1, 3, 2]], 0.1), loss)
    torch.testing.assert_close(cross_view_loss(targets[[1, 0]], logits[[1, 0, 2, 3]], 0.1), loss)
    assert abs(cross_view_loss(targets, logits[[1, 0, 2, 3]], 0.1) - loss) > 0.01  # views 0 and 1 are no others
    alike = torch.zeros(4, 6, 5)
    torch.testing.assert_close(cross_view_loss(targets.float(), alike, 0.1), torch.tensor(5.0).log())


def test_the_loss_across_views_is_float32_inside_bf16_autocast():
    targets, logits = (x.bfloat16() for x in views_of(6, 5, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_view_loss(targets, logits, 0.1)
    torch.testing.assert_close(loss, cross_view_loss(targets.float(), logits.float(), 0.1), rtol=1e-6, atol=1e-6)
