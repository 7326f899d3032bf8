"""Patch BERT: its words against a slow transcription, its loss number by number, and what cannot work."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from eagleray.blocks.hidden_patches import draw_blocks
from eagleray.blocks.masking import patchify
from eagleray.config import load_run
from eagleray.contracts.batch import Batch, DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import build_method
from eagleray_methods.patch_bert import PatchBERT, Vocabulary, word_loss
from method_cases import INFO, NOW, batch_of, small

SMALL = ["method.words=12"]


def made(info: DataInfo = INFO, *more: str) -> PatchBERT:
    settings = ["method=patch_bert", "encoder.depth=1", "encoder.dim=32", "method.words=12", *more]
    method = build_method(load_run(None, settings), info).double().train()
    assert isinstance(method, PatchBERT)
    return method


def slow_words(method: PatchBERT, images: Tensor) -> np.ndarray:
    """The nearest centroid of each patch, in 0 to 255, less its mean, over its contrast, whitened: [N, L]."""
    vocabulary, size, grid = method.vocabulary, method.encoder.patch_size, method.encoder.grid
    mean, whitening, centroids = (each.numpy() for each in vocabulary.buffers())
    pixels = images.numpy() * np.array(method.data.std)[:, None, None] + np.array(method.data.mean)[:, None, None]
    words = np.empty((len(images), grid**2), dtype=int)
    for n, place in np.ndindex(*words.shape):
        top, left = size * (place // grid), size * (place % grid)
        patch = 255 * pixels[n, :, top : top + size, left : left + size].transpose(1, 2, 0).reshape(-1)
        patch = (patch - patch.mean()) / math.sqrt(patch.var(ddof=1) + 10)
        words[n, place] = np.linalg.norm((patch - mean) @ whitening - centroids, axis=1).argmin()
    return words


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (12, 1)])
def test_the_step_is_the_cross_entropy_of_hidden_words(size: int, channels: int):
    mean, std = (0.3, 0.4, 0.7)[:channels], (0.2, 0.25, 0.4)[:channels]
    info = DataInfo(size, channels, 100, None, batch_size=6, seed=4, mean=mean, std=std)
    method = made(info)
    images = torch.randn(6, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    result = method(Batch([images], torch.arange(6)), NOW)
    words = slow_words(method, images)
    places = draw_blocks(6, method.encoder.grid, method.hidden, method.rng(NOW.step)).tolist()
    losses, right, drawn = [], [], []
    for n, hidden in enumerate(places):
        mask = torch.zeros(1, method.encoder.grid**2, dtype=torch.bool)
        mask[0, hidden] = True
        tokens = method.encoder.tokens(method.encoder.patches(images[n : n + 1], mask, method.mask_token))[0, 1:]
        for place in hidden:
            logits = method.head.weight @ tokens[place] + method.head.bias
            losses.append(logits.exp().sum().log() - logits[words[n, place]])
            right.append(logits.argmax().item() == words[n, place])
            drawn.append(words[n, place])
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=0)
    shares = np.bincount(drawn) / len(drawn)
    entropy = -sum(share * math.log(share) for share in shares if share)
    assert float(result.metrics["word_accuracy"]) == pytest.approx(np.mean(right))
    assert float(result.metrics["words_used"]) == pytest.approx(math.exp(entropy))
    assert len(set(drawn)) > 4
    parameters = [p for p in method.parameters() if p.requires_grad]
    for found, wanted in zip(
        torch.autograd.grad(result.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)


def test_words_are_where_patches_are():
    """Four kinds of patches become four words, each of one kind; its centroid is the kind's mean."""
    draw = torch.Generator().manual_seed(0)
    kinds = 3 * torch.randn(4, 12, dtype=torch.float64, generator=draw)
    patches = kinds.repeat(50, 1) + 0.01 * torch.randn(200, 12, dtype=torch.float64, generator=draw)
    best = None
    for seed in range(5):  # k-means may start with two patches of one kind, and then keeps them apart
        vocabulary = Vocabulary(4, 12).double()
        vocabulary.fit(patches, torch.Generator().manual_seed(seed))
        words = vocabulary(patches).reshape(50, 4)
        if (words == words[0]).all() and len(words[0].unique()) == 4:
            best = vocabulary
    assert best is not None
    white = (patches.reshape(50, 4, 12).mean(0) - best.mean) @ best.whitening
    torch.testing.assert_close(best.centroids[best(patches[:4])], white, rtol=0, atol=1e-6)


def test_whitened_patches_are_white_but_for_what_hardly_varies():
    patches = torch.randn(300, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)
    vocabulary = Vocabulary(4, 6).double()
    vocabulary.fit(patches, torch.Generator())
    before = np.linalg.eigvalsh(np.cov(patches.numpy().T))
    after = np.linalg.eigvalsh(np.cov(((patches - vocabulary.mean) @ vocabulary.whitening).numpy().T))
    np.testing.assert_allclose(after, before / (before + 0.1), rtol=1e-8)


def test_brightness_and_contrast_do_not_change_a_word():
    method = made(INFO)
    images = batch_of(method).views[0]
    method(batch_of(method), NOW)
    patches = method._patches(images)
    changed = method._patches(0.9 * images + 0.2)
    assert (method.vocabulary(patches) == method.vocabulary(changed)).float().mean() > 0.97


def test_words_are_found_once_and_kept_in_the_checkpoint():
    method, other = made(), made()
    assert not method.vocabulary.is_fitted
    method(batch_of(method), NOW)
    words = {name: value.clone() for name, value in method.vocabulary.named_buffers()}
    brighter = Batch([batch_of(method).views[0].flip(3) * 2], torch.arange(8))
    method(brighter, replace(NOW, step=4))
    other.load_state_dict(method.state_dict())
    assert other.vocabulary.is_fitted
    for each in (method, other):
        assert all(value.equal(words[name]) for name, value in each.vocabulary.named_buffers())
    assert other(brighter, NOW).loss.equal(method(brighter, NOW).loss)


def test_only_some_patches_of_a_large_step_are_grouped(monkeypatch: pytest.MonkeyPatch):
    seen = []
    from eagleray_methods import patch_bert

    kmeans = patch_bert.kmeans
    monkeypatch.setattr(patch_bert, "kmeans", lambda points, *rest: seen.append(len(points)) or kmeans(points, *rest))
    Vocabulary(2, 3).fit(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), torch.Generator())
    assert seen == [2 * patch_bert.PATCHES_EACH]


@pytest.mark.parametrize(
    ("info", "settings", "says"),
    [
        (
            INFO,
            ["method.words=200"],
            r"^method\.words=200 are more than the 128 patches of a step, .* take 12 or fewer",
        ),
        (INFO, ["encoder.patch_size=8"], r"^method\.mask_ratio=0\.4 hides none of 1 patches"),
        (replace(INFO, channels=1), ["encoder.patch_size=1"], r"needs patches of more than one number"),
    ],
)
def test_what_cannot_work_is_refused(info: DataInfo, settings: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        made(info, *settings)


def test_views_of_small_images_keep_their_object():
    assert small("patch_bert").views[0].crop == (0.2, 1.0)
    assert made(replace(INFO, image_size=224)).views[0].crop == (0.08, 1.0)


def test_the_loss_is_float32_inside_bf16_autocast():
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    words = torch.arange(5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = word_loss(logits, words)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, -logits.float().log_softmax(1)[torch.arange(5), words].mean())


def test_a_picture_shows_words_as_patches_of_that_word():
    """A patch whose word is its own centroid is shown as it is, less its brightness."""
    method = made(INFO, "method.words=128")  # 128 patches of a batch, all different
    images = batch_of(method).views[0]
    assert method.picture(images).keys() == {"seen", "words", "guessed"}
    method(batch_of(method), NOW)
    size, method = method.encoder.patch_size, method.eval()
    shown = {title: patchify(each, size) for title, each in method.picture(images).items()}
    hidden = shown["seen"].abs().sum(2) == 0
    assert hidden.sum(1).tolist() == [method.hidden] * len(images)
    plain = patchify(images, size)
    for each in shown.values():
        torch.testing.assert_close(each[~hidden], plain[~hidden])
    torch.testing.assert_close(shown["words"][hidden], method._patches(images)[hidden], rtol=1e-4, atol=1e-4)
    tokens = method.encoder.tokens(method.encoder.patches(images, hidden, method.mask_token))[:, 1:]
    guessed = method.vocabulary.patches(method.head(tokens).argmax(-1))
    torch.testing.assert_close(shown["guessed"][hidden], guessed[hidden])
