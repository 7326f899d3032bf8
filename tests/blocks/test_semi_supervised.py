"""The pieces of semi-supervised methods against their formulas and known answers."""

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from eagleray.blocks import semi_supervised as pieces
from eagleray.blocks.distributed import rank, world_size
from eagleray.runs.processes import two_processes

LOGITS = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
OTHERS = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3


def test_sharpening_raises_to_a_power_even_at_a_low_temperature():
    p = LOGITS.softmax(1)
    powers = p**2
    torch.testing.assert_close(pieces.sharpen(p, 0.5), powers / powers.sum(1, keepdim=True))
    cold = pieces.sharpen(p.float(), 1e-3)
    assert cold.isfinite().all()
    torch.testing.assert_close(cold.argmax(1), p.argmax(1))
    torch.testing.assert_close(pieces.sharpen(torch.tensor([[1.0, 0.0]]), 0.5), torch.tensor([[1.0, 0.0]]))


def test_entropy_and_divergence_are_scipys():
    p, q = LOGITS.softmax(1).numpy(), OTHERS.softmax(1).numpy()
    np.testing.assert_allclose(pieces.entropy(LOGITS), -(p * np.log(p)).sum(1))
    np.testing.assert_allclose(pieces.divergence(LOGITS, OTHERS), rel_entr(p, q).sum(1))
    targets, logits = LOGITS.clone().requires_grad_(), OTHERS.clone().requires_grad_()
    pieces.divergence(targets, logits).sum().backward()
    assert targets.grad is None
    np.testing.assert_allclose(logits.grad, q - p, atol=1e-12)  # the gradient of a cross-entropy


def test_pseudo_labels_count_from_their_threshold_on():
    guess, counts = pieces.guesses(LOGITS, 0.8)
    confidence = LOGITS.softmax(1).amax(1)
    assert 0 < counts.sum() < 6
    assert guess.tolist() == LOGITS.argmax(1).tolist()
    assert counts.tolist() == (confidence >= 0.8).double().tolist()
    own = torch.tensor([0.0, 1.1, 1.1, 1.1])
    assert pieces.guesses(LOGITS, own)[1].tolist() == (guess == 0).double().tolist()
    loss = pieces.pseudo_label_loss(guess, OTHERS, counts)
    expected = sum(-OTHERS[i].log_softmax(0)[guess[i]] for i in range(6) if counts[i]) / 6
    torch.testing.assert_close(loss, expected)


def test_losses_of_bf16_logits_are_float32():
    low = LOGITS.bfloat16()
    assert pieces.entropy(low).dtype == pieces.divergence(low, low).dtype == torch.float32


def test_ramps():
    assert pieces.sigmoid_ramp(0) == pytest.approx(math.exp(-5))
    assert pieces.sigmoid_ramp(0.5) == pytest.approx(math.exp(-1.25))
    assert pieces.sigmoid_ramp(3) == pieces.linear_ramp(3) == 1
    assert pieces.linear_ramp(0.25) == 0.25


def test_shares_are_at_least_a_half_and_have_the_betas_mean():
    shares = pieces.beta_shares(20_000, 0.75, torch.Generator().manual_seed(0))
    assert shares.min() >= 0.5
    expected = np.mean(np.maximum(b := np.random.default_rng(1).beta(0.75, 0.75, 200_000), 1 - b))
    assert float(shares.mean()) == pytest.approx(expected, abs=5e-3)
    again = pieces.beta_shares(20_000, 0.75, torch.Generator().manual_seed(0))
    assert torch.equal(shares, again)


def test_rows_are_repeated_about_equally_often_and_by_workers_alike():
    rows = torch.arange(6)
    whole = pieces.repeated(rows, 16)
    assert whole.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5]
    assert torch.cat([pieces.repeated(own, 8) for own in rows.chunk(2)]).tolist() == whole.tolist()
    assert pieces.repeated(rows, 6).tolist() == rows.tolist()


def parts() -> list[torch.Tensor]:
    return [torch.arange(8.0).view(8, 1) + 10 * place for place in range(3)]


def test_interleaving_gives_each_part_a_share_of_all_and_undoes_itself():
    swapped = pieces.interleaved(parts())
    assert {int(value) // 10 for value in swapped[0]} == {0, 1, 2}
    assert all(0 in {int(value) // 10 for value in part} for part in swapped)
    assert sorted(torch.cat(swapped).flatten().tolist()) == sorted(torch.cat(parts()).flatten().tolist())
    torch.testing.assert_close(pieces.interleaved(swapped), parts())


def swapped_by_a_worker() -> list[torch.Tensor]:
    return pieces.interleaved([part.chunk(world_size())[rank()] for part in parts()])


def test_two_workers_interleave_the_images_that_one_does():
    left, right = two_processes(swapped_by_a_worker)
    joined = [torch.cat(each) for each in zip(left, right, strict=True)]
    torch.testing.assert_close(joined, pieces.interleaved(parts()))
