"""LeJEPA against lightly's loss, its statistic where the answer is known, and across workers."""

import math

import pytest
import torch
from torch import Tensor

from eagleray.config import load_run
from eagleray.contracts.batch import Progress
from eagleray_methods.lejepa import LeJEPA, agreement, sigreg
from gradients import assert_two_are_one, of_own_part, with_gradients
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16", "method.projection=8", "method.directions=32", "method.local_size=4"]


def embeddings(views: int = 4, count: int = 12, width: int = 6) -> Tensor:
    """Views of images, whose later half is unlike the earlier one."""
    draw = torch.Generator().manual_seed(3)
    images = torch.randn(count, width, dtype=torch.float64, generator=draw)
    images[count // 2 :] = images[count // 2 :] * 2 + 0.5
    return images + 0.3 * torch.randn(views, count, width, dtype=torch.float64, generator=draw)


def drawn(width: int = 6, count: int = 20) -> Tensor:
    return torch.randn(width, count, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def weighted(z: Tensor) -> Tensor:
    return 0.9 * agreement(z) + 0.1 * sigreg(z, drawn())


def test_the_loss_is_lightlys(monkeypatch: pytest.MonkeyPatch):
    from lightly.loss import LeJEPALoss

    theirs = LeJEPALoss(lambda_param=0.1).double()  # its Gaussian has float32's digits
    unit = drawn() / drawn().norm(dim=0)
    monkeypatch.setattr(theirs.sigreg, "_generate_unit_vectors", lambda *_a, **_k: unit)
    expected = with_gradients(lambda z: theirs(global_proj=z[:2], local_proj=z[2:]), embeddings())
    torch.testing.assert_close(with_gradients(weighted, embeddings()), expected, rtol=1e-5, atol=1e-7)


def test_the_statistic_is_the_papers_integral():
    """Written out, number by number, over both signs of t."""
    z, a = embeddings(2, 5, 3), drawn(3, 2)
    step, total = 3 / 16, 0.0
    for view in z.tolist():
        for column in a.T.tolist():
            length = math.hypot(*column)
            projected = [sum(x * y for x, y in zip(row, column, strict=True)) / length for row in view]
            for k in range(-16, 17):
                t = k * step
                real = sum(math.cos(t * p) for p in projected) / len(projected)
                imaginary = sum(math.sin(t * p) for p in projected) / len(projected)
                error = (real - math.exp(-t * t / 2)) ** 2 + imaginary**2
                ends = 0.5 if abs(k) == 16 else 1.0
                total += ends * step * error * math.exp(-t * t / 2) * len(projected) / 4  # two views, two directions
    torch.testing.assert_close(sigreg(z, a), torch.tensor(total, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [32, 128])
def test_the_statistic_is_one_for_gaussians_and_grows_with_the_images_for_others(count: int):
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(32, count, 64, dtype=torch.float64, generator=draw)
    directions = torch.randn(64, 128, dtype=torch.float64, generator=draw)
    # 2 ∫ φ (1 - φ²) dt from 0 to 3, whose second part is that of all t to three digits
    expected = math.sqrt(2 * math.pi) * math.erf(3 / math.sqrt(2)) - math.sqrt(2 * math.pi / 3)
    assert float(sigreg(z, directions)) == pytest.approx(expected, abs=0.06)
    assert float(sigreg(0 * z, directions)) == pytest.approx(0.402 * count, rel=2e-3)
    # A sample's own deviation adds 2 ∫ φ (1 - exp(-4t²)) dt at any N, as for the Gaussian above.
    wide = math.sqrt(2 * math.pi) * math.erf(3 / math.sqrt(2)) - math.sqrt(2 * math.pi / 9)
    assert float(sigreg(2 * z, directions)) == pytest.approx(0.24 * count + wide, rel=0.03)


def test_the_directions_are_new_in_each_step_and_their_length_does_not_count(monkeypatch: pytest.MonkeyPatch):
    method, seen = small("lejepa"), []
    assert isinstance(method, LeJEPA)
    monkeypatch.setattr("eagleray_methods.lejepa.sigreg", lambda z, a: (seen.append(a), z.sum())[1])
    for step in (3, 3, 4):
        method(batch_of(method), Progress(step=step, steps=10, epoch=0, epochs=1))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    torch.testing.assert_close(sigreg(embeddings(), 3 * drawn()), sigreg(embeddings(), drawn()))


def test_small_crops_are_drawn_to_the_mean_of_the_large_ones_alone():
    z = torch.tensor([[[1.0, 0]], [[3, 0]], [[2, 4]]]).double()  # two large crops with the mean (2, 0), a small one
    torch.testing.assert_close(agreement(z), torch.tensor((1 + 1 + 16) / 6).double())
    method = small("lejepa", "method.local_crops=3")
    assert [view.shape[-1] for view in batch_of(method).views] == [8, 8, 4, 4, 4]


def test_the_step_weighs_both_terms():
    method = small("lejepa", "method.weight=0.2")
    result = method(batch_of(method), NOW)
    terms = [float(result.metrics[name]) for name in ("agreement", "gaussianity")]
    assert float(result.loss.detach()) == pytest.approx(0.8 * terms[0] + 0.2 * terms[1])


def test_the_loss_is_float32_inside_bf16_autocast():
    z = embeddings().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = weighted(z)
    torch.testing.assert_close(found, weighted(z), rtol=1e-6, atol=1e-6)


def halves(z: Tensor) -> list[Tensor]:
    return of_own_part(lambda rows: weighted(rows.transpose(0, 1)), z.transpose(0, 1))


@pytest.mark.slow
def test_two_workers_get_the_loss_and_gradient_of_one():
    assert_two_are_one(halves, embeddings())


def test_the_papers_recipe_is_that_of_the_authors_page():
    run = load_run(None, ["method=lejepa", "recipe=paper", "batch_size=512"])
    assert (run.optimizer.peak_lr(512), run.optimizer.weight_decay, run.optimizer.final_lr) == (5e-4, 0.05, 1e-3)
