"""Reconstructions are the method's own predictions, and other methods have none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eagleray.pictures.catalogue import Absent
from eagleray.pictures.of_runs.reconstructions import draw
from pictures.subjects import run_on, trained

MAE = ["data=digits", "data.limit=60", "method=mae", "encoder=vit_tiny", "encoder.depth=1", "encoder.dim=32",
       "encoder.patch_size=2", "method.decoder_dim=32", "method.decoder_depth=1"]  # fmt: skip


def masked(directory: Path, *settings: str) -> Path:
    return run_on(directory, *MAE, *settings, width=None)


def test_a_row_has_the_image_what_is_seen_of_it_and_the_prediction(tmp_path: Path):
    run = trained(tmp_path / "run", masked)
    places = run.samples(16)
    inputs = run.inputs(places)
    made = run.built.method.reconstruct(inputs)
    assert made is not None
    hidden, whole = made
    images = [image.get_array() for image in draw(run).axes[0].images]
    assert len(images) == 3 * 16
    for row in range(16):
        start = 6 * (row % 8) + 3 * (row // 8)  # two images in a row
        image, seen, reconstruction = images[start : start + 3]
        mask = hidden[row].numpy()
        np.testing.assert_allclose(image, run.visible(inputs)[row])
        assert (seen[mask] == 0.5).all()
        np.testing.assert_allclose(seen[~mask], image[~mask])
        np.testing.assert_allclose(reconstruction, run.visible(whole)[row])
        assert mask.mean() == 0.75


def test_a_method_that_reconstructs_nothing_is_told_in_a_sentence(tmp_path: Path):
    with pytest.raises(Absent, match=r"^simclr reconstructs no pixels: this is a picture of masked methods$"):
        draw(trained(tmp_path / "run"))
    assert torch.is_grad_enabled()
