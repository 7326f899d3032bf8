"""Losses and gradients of semi-supervised methods against semilearn's, step by step.

`benchmarks/semilearn_numbers.py` has written those. Entropy minimisation, temporal ensembling and label propagation are
not in semilearn.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eagleray.blocks.semi_supervised import entropy, guesses
from eagleray.contracts.batch import Batch, LabelledBatch
from eagleray.contracts.method import Method
from eagleray_methods import vat
from method_cases import NOW, small
from test_benchmarks import FILES, loaded

SCRIPT = loaded(next(file for file in FILES if file.stem == "semilearn_numbers"))
THEIRS = json.loads(SCRIPT.FILE.read_text(encoding="utf-8"))

CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 1e-6}  # semilearn keeps some averages in float32


@dataclass(frozen=True)
class Case:
    """How a method of ours is made to be semilearn's."""

    theirs: str
    settings: tuple[str, ...] = ()
    views: tuple[str, ...] = ("weak", "strong")
    before: Callable[[Any, Tensor], None] = lambda method, weak: None  # with the weak views' probabilities
    loss: Callable[[Any, Tensor], Tensor | float] = lambda method, weak: 0.0  # what semilearn's loss has more
    same_gradient: bool = True


def averaged(method: Any, weak: Tensor) -> None:
    """Take semilearn's moving average of predictions, with this batch, for that of the last 128 batches without it."""
    mean, before = weak.mean(0), getattr(method, "average_before", None)
    method.average_before = mean if before is None else 0.999 * before + 0.001 * mean
    method.predicted[:] = method.average_before


def begins_at_the_mean(method: Any, weak: Tensor) -> None:
    """Start the mean prediction where semilearn does: at that of the first batch, not where all classes are alike."""
    if torch.equal(method.predicted, torch.full_like(method.predicted, 1 / len(method.predicted))):
        method.predicted.copy_(weak.mean(0))


def uncertainty(method: Any, weak: Tensor) -> Tensor:
    """Return by how much a cross-entropy is above a divergence."""
    logits = weak.log()
    return (entropy(logits) * guesses(logits, 0.6)[1]).mean()


CASES = {
    "fixmatch": Case("fixmatch", ("threshold=0.6",)),
    "pseudo_label": Case("pseudolabel", ("threshold=0.6", "ramp=0"), ("weak",)),
    # semilearn stops the gradient at one of the predictions, the paper and we do not.
    "pi_model": Case("pimodel", ("weight=1", "ramp=0"), same_gradient=False),
    "mean_teacher": Case("meanteacher", ("weight=1", "ramp=0"), ("strong", "weak")),
    "vat": Case("vat", (f"epsilon={SCRIPT.EPSILON}", "entropy=1"), ("weak",)),
    # At temperature 1: semilearn's targets are not sharpened, the authors' and ours are.
    "uda": Case("uda", ("threshold=0.6", "temperature=1"), loss=uncertainty),
    "mixmatch": Case("mixmatch", ("weight=1", "ramp=0")),
    "remixmatch": Case(
        "remixmatch",
        ("strong_views=2", "mixed=1", "anchor=1", "rotation=1", "ramp=0"),
        ("weak", "strong", "third"),
        averaged,
    ),
    "flexmatch": Case("flexmatch", ("threshold=0.6",)),
    "freematch": Case("freematch", ("threshold_momentum=0.9", "fairness=1")),
    "softmatch": Case("softmatch", ("confidence_momentum=0.9",), before=begins_at_the_mean),
    "comatch": Case(
        "comatch",
        ("threshold=0.6", "edge=0.5", "memory=16", "alignment=3", f"projection={SCRIPT.WIDTH}"),
        ("weak", "strong", "third"),
    ),
}


def made(name: str, case: Case) -> Method:
    method: Any = small(name, *(f"method.{setting}" for setting in case.settings))
    method.encoder, method.classifier = nn.Flatten(), SCRIPT.linear()
    method.teacher = nn.Sequential(nn.Flatten(), SCRIPT.linear(seed=102))
    method.rotation_classifier, method.projector = SCRIPT.linear(4, seed=101), SCRIPT.linear(SCRIPT.WIDTH, seed=103)
    return method


def as_ours(order: Tensor, parts: list[int]) -> Tensor:
    """Reorder a permutation of the images of all parts: ours are image by image, semilearn's part by part.

    `parts` says which of semilearn's parts each of ours is.
    """
    places = (torch.tensor(parts) * SCRIPT.UNLABELLED + torch.arange(SCRIPT.UNLABELLED)[:, None]).flatten()
    return places.argsort()[order[places]]


def compare(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check four steps."""
    method: Any = made(name, case)
    monkeypatch.setattr(vat, "XI", 1e-6)  # semilearn's step, which float64 can resolve
    monkeypatch.setattr(
        f"eagleray_methods.{name}.beta_shares", lambda n, *_: torch.full([n], SCRIPT.SHARE), raising=False
    )
    for step, theirs in enumerate(THEIRS[case.theirs]):
        drawn = SCRIPT.numbers(step)
        labelled = LabelledBatch([drawn["labelled"]], drawn["targets"], torch.arange(SCRIPT.LABELLED))
        batch = Batch([drawn[view] for view in case.views], drawn["indices"], labelled)
        weak = method.classifier(drawn["weak"].flatten(1)).softmax(1).detach()
        case.before(method, weak)
        with monkeypatch.context() as patch:
            parts = [0, 3, 1, 2] if name == "remixmatch" else [0, 1, 2]  # its weak views are semilearn's last part
            order = as_ours(SCRIPT.order(drawn, len(parts) * SCRIPT.UNLABELLED), parts)
            patch.setattr(torch, "randperm", lambda *_, order=order, **__: order)
            patch.setattr(torch, "randn", lambda *_, start=drawn["direction"], **__: start)
            loss = method(batch, NOW).loss
        (gradient,) = torch.autograd.grad(loss, method.classifier.weight)
        torch.testing.assert_close(loss + case.loss(method, weak), torch.tensor(theirs["loss"]).to(loss), **CLOSE)
        if case.same_gradient:
            torch.testing.assert_close(gradient, torch.tensor(theirs["gradient"]).to(gradient), **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_four_steps_have_the_loss_and_gradient_of_semilearn(name: str, monkeypatch: pytest.MonkeyPatch):
    compare(name, CASES[name], monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_its_unlabelled_term_has_a_part_in_them(name: str, monkeypatch: pytest.MonkeyPatch):
    settings = [setting for setting in CASES[name].settings if not setting.startswith("weight=")]
    with pytest.raises(AssertionError, match="not close"):
        compare(name, replace(CASES[name], settings=(*settings, "weight=0")), monkeypatch)
