"""The probe on corrupted images: of encoders whose robustness is known, and shared by workers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from eagleray.augment.corruptions import CORRUPTIONS
from eagleray.config import load_run
from eagleray.contracts.features import Features
from eagleray.evaluators.corruptions import Corruptions
from eagleray.runs.assemble import assemble
from eagleray.runs.evaluation import Encoded

RUN = ["encoder.width=8", "data.limit=300", "batch_size=64", "threads=1", "device=cpu", "precision=fp32"]


@dataclass
class Pixels:
    """Images that are their own features, up to what an encoder makes of them."""

    images: Tensor  # [N, C, S, S] in 0..1
    labels: Tensor
    encoder: Any
    seed: int = 0
    validation: Features | None = None

    @property
    def train(self) -> Features:
        return Features(self.encoder(self.images[:1000]).flatten(1), self.labels[:1000])

    def changed(self, change, most: int) -> Features:
        images = self.images[1000 : 1000 + most]
        features = self.encoder(change(images, places=torch.arange(len(images)))).flatten(1)
        return Features(features, self.labels[1000 : 1000 + most])


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)


def coarse(images: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels."""
    return F.avg_pool2d(images, 2)


def of(digits: tuple[Tensor, Tensor], encoder: Any, **settings: Any) -> dict[str, float]:
    return dict(Corruptions(Corruptions.Config(**settings))(Pixels(*digits, encoder)).numbers)  # type: ignore[arg-type]


def test_brightness_and_contrast_against_scikit_learn(digits: tuple[Tensor, Tensor]):
    """The probe of scikit-learn, on images changed by hand."""
    images, labels = digits
    found = of(digits, coarse, images=300, severities=(5,))
    assert (
        set(found)
        == set(Corruptions.metrics)
        == {"corrupted", "corrupted_ratio", *(f"corrupted_{n}" for n in CORRUPTIONS)}
    )
    assert found["corrupted"] == pytest.approx(
        sum(found[f"corrupted_{name}"] for name in CORRUPTIONS) / len(CORRUPTIONS)
    )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(coarse(images[:1000]).flatten(1), labels[:1000])

    def score(shown: Tensor) -> float:
        return float(probe.score(coarse(shown).flatten(1), labels[1000:1300]))

    shown = images[1000:1300]
    mean = shown.mean((1, 2, 3), keepdim=True)
    assert found["corrupted_brightness"] == pytest.approx(score((shown + 0.3).clamp(max=1)), abs=0.03)
    assert found["corrupted_contrast"] == pytest.approx(score(mean + 0.15 * (shown - mean)), abs=0.03)
    assert found["corrupted"] / found["corrupted_ratio"] == pytest.approx(score(shown), abs=0.03)


def test_what_an_encoder_ignores_costs_nothing(digits: tuple[Tensor, Tensor]):
    clean = of(digits, lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True), images=300)
    plain = of(digits, lambda x: x, images=300)
    assert clean["corrupted_contrast"] == pytest.approx(clean["corrupted"] / clean["corrupted_ratio"])
    assert clean["corrupted_contrast"] > plain["corrupted_contrast"] + 0.05
    assert of(digits, lambda x: x, images=300, severities=(1,))["corrupted"] > plain["corrupted"]


def test_features_without_information_have_nothing_to_lose(digits: tuple[Tensor, Tensor]):
    found = of(digits, lambda x: torch.zeros(len(x), 4), images=100)
    assert found["corrupted_ratio"] == pytest.approx(1)


def changed(directory: str) -> dict[str, Any]:
    """Return what an untrained network makes of images as they are, and of noisy ones, and the metrics."""
    settings = [f"data.cache={directory}", "evaluate.corruptions.when=always"]
    built = assemble(
        load_run(None, [*RUN, *settings, "evaluate.corruptions.images=37", "evaluate.corruptions.severities=[3]"])
    )
    method, data = built.method.eval(), built.data
    assert data.validation is not None
    encoded = Encoded(built.evaluation, method.encode, method, built.autocast, data, data.validation)
    noisy = encoded.changed(lambda pixels, places: pixels + 0.01 * places.view(-1, 1, 1, 1), 37)
    plain = encoded.changed(lambda pixels, places: pixels, 37)
    return {
        "noisy": noisy.features,
        "plain": plain.features,
        "labels": plain.targets(),
        "whole": encoded.evaluated.features,
        "metrics": dict(built.evaluation(method, built.autocast, final=False)),
    }


def test_images_are_changed_before_they_are_normalised(tmp_path: Path):
    found = changed(str(tmp_path))
    rows = torch.arange(37) * len(found["whole"]) // 37
    torch.testing.assert_close(found["plain"], found["whole"][rows])
    moved = (found["noisy"] - found["plain"]).norm(dim=1)
    assert moved[0] == 0
    assert moved[36] > moved[6] > 0
    assert set(Corruptions.metrics) <= set(found["metrics"])


def test_intervals_are_those_of_other_images(digits: tuple[Tensor, Tensor]):
    found = Corruptions(Corruptions.Config(images=400, severities=(1, 5)))(Pixels(*digits, coarse))  # type: ignore[arg-type]
    assert found.images == 400
    assert set(found.intervals) == set(found.numbers)
    for name, (low, high) in found.intervals.items():
        assert low <= found.numbers[name] <= high
    low, high = found.intervals["corrupted_brightness"]
    share = found.numbers["corrupted_brightness"]
    assert high - low <= 2 * 1.97 * (share * (1 - share) / 400) ** 0.5, "two severities of an image tell more than one"
    ratio = found.intervals["corrupted_ratio"]
    alone = found.intervals["corrupted"]
    clean = found.numbers["corrupted"] / found.numbers["corrupted_ratio"]
    assert ratio[1] - ratio[0] < (alone[1] - alone[0]) / clean, "an image that is hard is so in both"
