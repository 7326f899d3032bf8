"""Why methods fall behind, on planted images whose classes are directions of stripes.

Those that reconstruct learn first what has most of the variance, whatever tells classes.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import Tensor
from torch.nn.functional import avg_pool2d

from eagleray.blocks.optimizers import make_optimizer, set_rates
from eagleray.config import load_run
from eagleray.contracts.batch import Batch, LabelledBatch, Progress
from eagleray.contracts.method import Method
from eagleray.runs.assemble import build_method
from eagleray_methods import count
from eagleray_methods.count import Count
from method_cases import INFO, NOW

SIDE, BATCH = 16, 64
TURNS = torch.arange(SIDE) / SIDE * 2 * math.pi
Planted = Callable[[int, float, torch.Generator], tuple[Tensor, Tensor]]
CONVNET = ["encoder.width=8", "optimizer.name=adamw", "optimizer.lr=2e-3"]
VIT = [
    *("encoder=vit_tiny", "encoder.depth=2", "encoder.dim=64"),
    *("optimizer.name=muon", "optimizer.lr=1e-2", "optimizer.warmup_epochs=0.1"),  # of 1: the same for every method
]


def stripes(phase: Tensor, label: Tensor) -> Tensor:
    """Return four stripes of variance 1, across or down, of phases [N, 1] and labels [N]: [N, S, S]."""
    down = 2**0.5 * torch.cos(4 * TURNS + phase)[:, :, None].expand(-1, -1, SIDE)
    return torch.where(label[:, None, None] == 0, down, down.mT)


def in_colour(grey: Tensor) -> Tensor:
    """Return images [N, S, S] with three equal channels."""
    return grey[:, None].expand(-1, 3, -1, -1).contiguous()


def in_smooth(count: int, fine: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw grey images of a smooth part and of stripes whose direction is the class; `fine`: deviation of the stripes.

    All phases are random, so that no pixel has anything to do with the class.
    """
    phase, size = torch.rand(count, 3, generator=draw) * 2 * math.pi, torch.randn(count, 2, generator=draw)
    across, down = (size[:, k, None] * torch.cos(TURNS + phase[:, k, None]) for k in range(2))
    smooth = across[:, None, :] + down[:, :, None]
    label = torch.randint(2, (count,), generator=draw)
    return in_colour((1 - fine**2) ** 0.5 * smooth + fine * stripes(phase[:, 2, None], label)), label


def lit(count: int, brightness: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw noisy grey images of stripes, whose direction is the class; `brightness`: its standard deviation."""
    phase, label = torch.rand(count, 1, generator=draw) * 2 * math.pi, torch.randint(2, (count,), generator=draw)
    level, noise = torch.randn(count, 1, 1, generator=draw), torch.randn(count, SIDE, SIDE, generator=draw)
    return in_colour(brightness * level + 0.4 * stripes(phase, label) + 0.6 * noise), label


def explained(images: Tensor, reconstructed: Tensor) -> tuple[float, float]:
    """Return the share of the smooth part's and of the stripes' variance that reconstructions explain."""
    is_low = torch.fft.fftfreq(SIDE, 1 / SIDE).abs() < 3
    is_smooth = is_low[:, None] & is_low
    image, error = torch.fft.fft2(images).abs().square(), torch.fft.fft2(reconstructed - images).abs().square()
    shares = (1 - float((error * part).sum() / (image * part).sum()) for part in (is_smooth, ~is_smooth))
    return next(shares), next(shares)


def accuracy(method: Method, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Return the accuracy of a linear classifier of the trained encoder's features, by ridge regression.

    A teacher's features would say how far it has followed.
    """
    first, second = (torch.cat([method.encoder(x), torch.ones(len(x), 1)], 1).double() for x in (train[0], test[0]))
    scale = first.std(0).clamp(min=1e-5)
    scale[-1] = 1
    first, second = first / scale, second / scale
    gram = first.T @ first + torch.eye(first.shape[1])
    weights = torch.linalg.solve(gram, first.T @ (2.0 * train[1].double() - 1))
    return float(((second @ weights > 0).long() == test[1]).double().mean())


def trained(
    settings: list[str], amount: float, steps: int, planted: Planted = in_smooth
) -> tuple[Method, Tensor, float, float]:
    """Train; return the method, test images, and the accuracy before and after training."""
    run = load_run(None, settings)
    method = build_method(run, replace(INFO, image_size=SIDE, batch_size=BATCH, classes=2))
    draw = torch.Generator().manual_seed(0)
    train, test = planted(1000, amount, draw), planted(1000, amount, draw)
    optimizer = make_optimizer(method, run.optimizer)
    with torch.no_grad():
        before = accuracy(method.eval(), train, test)
    for step in range(steps):
        now = Progress(step, steps, 0, 1)
        set_rates(optimizer, run.optimizer, BATCH, now)
        images, labels = planted(BATCH, amount, draw)
        places = torch.arange(BATCH)
        views = [images] * len(method.views)
        result = method.train()(Batch(views, places, LabelledBatch([images], labels, places)), now)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        method.after_step(now)
    with torch.no_grad():
        return method, test[0], before, accuracy(method.eval(), train, test)


def learnt(settings: list[str], fine: float, steps: int = 200) -> tuple[float, float, float, float]:
    """Train; return what is explained of both parts, and the accuracy before and after training."""
    method, images, before, after = trained([*settings, *CONVNET], fine, steps)
    return *explained(images, method.picture(images)["reconstructed"]), before, after


@pytest.mark.parametrize(
    "settings",
    [
        ["method=denoising_autoencoder", "method.decoder_width=16"],
        ["method=vae", "method.latent=32"],
        ["method=ebgan", "method.width=16"],
    ],
    ids=lambda settings: settings[0],
)
def test_what_has_little_variance_is_not_reconstructed_and_is_forgotten(settings: list[str]):
    """Stripes of 4 % of the variance are recognised better before training than after; of 94 %, always."""
    smooth, stripes, before, after = learnt(settings, 0.2)
    assert smooth > 0.9 > 0.1 > stripes
    assert after < before - 0.03, "training makes features worse than those of random weights"
    smooth, stripes, _, after = learnt(settings, 0.97)
    assert stripes > 0.9
    assert stripes > smooth
    assert after > 0.99


@pytest.mark.parametrize("adversarial", [0, 0.001])
def test_completing_holes_forgets_what_has_little_variance(adversarial: float):
    settings = ["method=context_encoder", "method.width=16", f"method.adversarial={adversarial}", *CONVNET]
    *_, before, after = trained(settings, 0.2, 200)
    assert after < before - 0.05
    assert trained(settings, 0.97, 200)[-1] > 0.99


@pytest.mark.slow
def test_ebgan_reconstructs_more_in_more_steps_and_forgets_less():
    settings = ["method=ebgan", "method.width=16"]
    early, late = (learnt(settings, 0.2, steps) for steps in (200, 600))
    assert late[1] > early[1] + 0.2
    assert late[3] > early[3] + 0.03


def test_bigan_s_encoder_inverts_nothing_in_steps_that_suffice_to_reconstruct():
    """What its latent vectors generate is further from an image than the mean image is, and features lose the class."""
    smooth, stripes, before, after = learnt(["method=bigan", "method.width=16", "method.hidden=64"], 0.2)
    assert smooth < 0
    assert stripes < 0
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "patch_size", "fine", "steps"),
    [
        (["method=simmim"], 4, 0.1, 500),
        (["method=maskfeat"], 4, 0.1, 500),
        (["method=data2vec", "method.momentum=0.99"], 4, 0.1, 500),
        (["method=msn"], 4, 0.1, 500),
        # Its blocks want a finer grid, on which stripes are harder to see.
        (["method=ijepa", "method.targets=2", "method.predictor_dim=32", "method.predictor_depth=1"], 2, 0.2, 600),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_hidden_patches_teach_in_more_steps_what_labels_teach(
    settings: list[str], patch_size: int, fine: float, steps: int
):
    vit = [*VIT, f"encoder.patch_size={patch_size}"]
    *_, untrained, labels = trained(["method=supervised", *vit], fine, 100)
    (*_, early), (*_, before, late) = (trained([*settings, *vit], fine, count) for count in (100, steps))
    assert labels > untrained + 0.12
    assert labels > early + 0.03
    assert late > max(before, early) + 0.05


COUNT = ["method=count", "method.counts=32", "method.hidden=32"]


@pytest.mark.parametrize(("settings", "is_learnt"), [(COUNT, False), (["method=supervised"], True)], ids=str)
def test_where_brightness_tells_images_apart_nothing_else_is_counted(settings: list[str], is_learnt: bool):
    """It distinguishes images, so that stripes are learnt where there is nothing else. Labels teach them always."""
    removed = []  # shares of the untrained network's errors
    for brightness in (0, 1):
        method, images, before, after = trained([*settings, *CONVNET], brightness, 200, lit)
        removed.append((after - before) / (1 - before))
        if brightness and isinstance(method, Count):
            with torch.no_grad():
                counts = method.counter(method.encoder(avg_pool2d(images, 2))).relu()
            known = LinearRegression().fit(counts[:500], images[:500].mean((1, 2, 3)))
            assert known.score(counts[500:], images[500:].mean((1, 2, 3))) > 0.8, "it is brightness that is counted"
    assert removed[0] > 0.8
    assert removed[1] > 0.8 if is_learnt else removed[1] < 0.3


def test_counts_that_start_small_stay_in_use(monkeypatch: pytest.MonkeyPatch):
    """From the usual weights a third of them are 0 for every image after 150 steps; both distinguish images."""
    used = []
    for start in (1.0, count.START):
        monkeypatch.setattr(count, "START", start)
        method, *_ = trained(["method=count", "method.counts=64", "method.hidden=64", *CONVNET], 1, 150, lit)
        images = lit(BATCH, 1, torch.Generator().manual_seed(1))[0]
        with torch.no_grad():
            metrics = method.train()(Batch([images], torch.arange(BATCH), None), NOW).metrics
        used.append(float(metrics["used"]))
        assert metrics["active"] < 0.7
    assert used[0] < 0.7
    assert used[1] > 0.85, used
