"""What a method makes of images is shown below them, what stands alone below all, and other methods have no picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eagleray.pictures.catalogue import Absent
from eagleray.pictures.of_runs.made import blocks, draw
from pictures.subjects import run_on, trained

MAE = ["data=digits", "data.limit=60", "method=mae", "encoder=vit_tiny", "encoder.depth=1", "encoder.dim=32",
       "encoder.patch_size=2", "method.decoder_dim=32", "method.decoder_depth=1"]  # fmt: skip
VAE = ["data=digits", "data.limit=60", "method=vae", "method.decoder_width=8"]
KMEANS = ["data=digits", "data.limit=100", "method=kmeans_features"]


def masked(directory: Path, *settings: str) -> Path:
    return run_on(directory, *MAE, *settings, width=None)


def test_below_each_image_are_what_is_seen_of_it_and_the_prediction(tmp_path: Path):
    run = trained(tmp_path / "run", masked)
    inputs = run.inputs(run.samples(10))
    made = run.built.method.picture(inputs)
    axes = draw(run).axes[0]
    images = [image.get_array() for image in axes.images]
    expected = [*run.visible(inputs), *run.visible(made["seen"]), *run.visible(made["reconstructed"])]
    for found, image in zip(images, expected, strict=True):
        np.testing.assert_allclose(found, image)
    places = [image.get_extent() for image in axes.images]
    assert [each[:2] for each in places[:10]] == [each[:2] for each in places[10:20]]  # in the same columns
    said = [text.get_text() for text in axes.texts if text.get_text()]
    assert [each for each in said if each in ("images", *made)] == ["images", "seen", "reconstructed"]
    assert said[:10] == [run.class_of(place) for place in run.samples(10)]


def test_samples_follow_in_rows_of_their_own(tmp_path: Path):
    run = trained(tmp_path / "run", lambda folder: run_on(folder, *VAE))
    made = run.built.method.picture(run.inputs(run.samples(10)))
    images = [image.get_array() for image in draw(run).axes[0].images]
    assert len(images) == 10 + 10 + 20
    for found, image in zip(images[20:], run.visible(made["generated"]), strict=True):
        np.testing.assert_allclose(found, image)


def test_many_small_images_share_a_tile_and_not_all_are_shown_of_too_many(tmp_path: Path):
    run = trained(tmp_path / "run", lambda folder: run_on(folder, *KMEANS, width=501))
    with torch.no_grad():
        centroids = run.visible(run.built.method.picture(run.inputs(run.samples(10)))["centroids"])
    axes = draw(run).axes[0]
    tiles = [image.get_array() for image in axes.images][20:]
    assert [tile.shape for tile in tiles] == [(34, 34, 3)] * 20  # 5 x 5 patches of 6 pixels, with 4 lines
    np.testing.assert_allclose(tiles[0][:6, 7:13], centroids[1])
    np.testing.assert_allclose(tiles[1][7:13, :6], centroids[30])
    assert (tiles[0][6] == 1).all()
    assert "centroids, 500\nof 501" in [text.get_text() for text in axes.texts]


def test_the_last_tile_may_have_room_left():
    (first, last) = blocks([np.zeros((2, 2, 3))] * 5, 2)
    assert first.shape == last.shape == (5, 5, 3)
    assert (last[:2, :2] == 0).all()
    assert last.sum() == 3 * (25 - 4)


def test_a_method_that_makes_no_images_is_told_in_a_sentence(tmp_path: Path):
    with pytest.raises(Absent, match=r"^simclr makes no images that could be shown$"):
        draw(trained(tmp_path / "run"))
    assert torch.is_grad_enabled()
