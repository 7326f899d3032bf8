"""Errors of unseen images beside those of training images; and each method's error against its own pictures."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eagleray.config import load_run
from eagleray.config.registry import declared
from eagleray.contracts.features import Features
from eagleray.contracts.report import Report
from eagleray.evaluators.unseen import Unseen
from eagleray.loop import train
from eagleray_methods.ebgan import EBGAN, distances
from method_cases import batch_of, small

NAMES = sorted(name for name, one in declared("method").items() if one.values["has_error"])
RUN = ["data.limit=160", "batch_size=40", "threads=1", "device=cpu", "precision=fp32", "encoder.width=8",
       "evaluate.protocols=[unseen]"]  # fmt: skip


def last(directory: Path, *settings: str) -> Report:
    return [report for report in train(load_run(None, [*RUN, *settings]), directory) if report.epoch_ended][-1]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_s_error_is_its_own_and_that_of_what_is_made_of_it(name: str):
    method = small(name).eval()
    images = batch_of(method).views[0]
    errors = method.error(images)
    assert errors.shape == (len(images),)
    assert errors.std() > 0
    torch.testing.assert_close(method.error(images[2:5]), errors[2:5])
    torch.testing.assert_close(method.error(images), errors)
    if isinstance(method, EBGAN):
        shown = method.picture(images)["reconstructed"]
        energies = distances(method.decoder.signed(images), method.decoder.signed(shown))
        torch.testing.assert_close(errors, energies)
    elif name != "denoising_autoencoder":  # whose picture is of corrupted images
        shown = method.picture(images)["reconstructed"]
        torch.testing.assert_close(errors, ((shown - images) ** 2).mean((1, 2, 3)))


def test_memorised_images_have_the_smaller_error(tmp_path: Path):
    """Sixteen images, seen 150 times each."""
    found = last(tmp_path, "method=vae", "data.limit=16", "batch_size=8", "epochs=150", "data.validation=0.3").metrics
    assert found["unseen_error"] > 1.2 * found["seen_error"]


def test_numbers_are_means_with_intervals():
    """A standard error of 1 / 10 of the deviation of 100 images."""
    errors = torch.randn(100, 1, generator=torch.Generator().manual_seed(0)) + 3
    both: Any = SimpleNamespace(
        errors=Features(errors), seen_errors=Features(errors[:50]), data=SimpleNamespace(validation="some")
    )
    found = Unseen(Unseen.Config())(both)
    assert found.images == {"seen_error": 50, "unseen_error": 100}
    assert found.numbers["unseen_error"] == pytest.approx(float(errors.mean()))
    low, high = found.intervals["unseen_error"]
    assert (high - low) / 2 == pytest.approx(1.96 * float(errors.std()) / 10, rel=0.02)


def test_without_held_out_images_there_is_no_error_of_any(tmp_path: Path):
    metrics = last(tmp_path, "method=vae", "epochs=1", "data.validation=0").metrics
    assert "seen_error" in metrics
    assert "unseen_error" not in metrics


def test_a_method_that_reproduces_nothing_reports_none(tmp_path: Path):
    assert not {"seen_error", "unseen_error"} & set(last(tmp_path, "method=simclr", "epochs=1").metrics)


def test_beside_others_it_is_the_main_method_s(tmp_path: Path):
    assert "unseen_error" in last(tmp_path, "method=vae", "beside=[rotnet]", "epochs=1").metrics
