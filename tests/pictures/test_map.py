"""The map: PCA as numpy has it, t-SNE that keeps planted groups, images at their places."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eagleray.pictures.catalogue import Absent
from eagleray.pictures.of_runs.map import draw, main_directions, nearest_to_cells, neighbour_map
from pictures.subjects import photos, run_on, trained


def groups(count: int, width: int = 20) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return 4 * noise.normal(size=(3, width))[labels] + noise.normal(size=(count, width)), labels


def test_the_main_directions_are_the_singular_vectors_up_to_their_signs():
    features, _ = groups(90)
    found, shares = main_directions(features)
    left, values, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :2] * values[:2]), atol=1e-8)
    np.testing.assert_allclose(shares, values[:2] ** 2 / (values**2).sum())


def test_neighbours_stay_neighbours_and_a_seed_gives_one_map():
    features, labels = groups(90)
    found = neighbour_map(features, seed=3)
    assert np.array_equal(found, neighbour_map(features, seed=3))
    distances = np.square(found[:, None] - found).sum(2) + np.diag([np.inf] * 90)
    assert (labels[distances.argmin(1)] == labels).all()


def test_each_cell_has_the_image_nearest_to_its_middle():
    points = np.random.default_rng(0).random((400, 2)) * (3, 50) - 7
    rows, columns = 15, 36
    cells = nearest_to_cells(points, rows, columns)
    scaled = (points - points.min(0)) / np.ptp(points, axis=0)
    for (row, column), place in cells.items():
        middle = np.array([(column + 0.5) / columns, (rows - row - 0.5) / rows])
        inside = (np.abs(scaled - middle) * (columns, rows) <= 0.5 + 1e-9).all(1)
        nearest = (np.square((scaled - middle) * (columns, rows)).sum(1) + np.where(inside, 0, np.inf)).argmin()
        assert place == nearest
    assert len(cells) > 100


def test_the_map_of_classes_has_each_image_twice_in_the_colour_of_its_class(tmp_path: Path):
    run = trained(tmp_path / "run")
    figure = draw(run)
    assert run.labels is not None
    for axes in figure.axes[:2]:
        drawn = {scatter.get_label(): len(scatter.get_offsets()) for scatter in axes.collections}
        assert drawn == {str(each): int((run.labels == each).sum()) for each in np.unique(run.labels)}
        signs = {(tuple(each.get_facecolor()[0]), each.get_paths()[0].vertices.tobytes()) for each in axes.collections}
        assert len(signs) == len(axes.collections)


def test_images_without_classes_have_a_map_and_the_collage_shows_them(tmp_path: Path):
    run = trained(tmp_path / "run", run_on, *photos(tmp_path, 30, 1))
    figure = draw(run)
    assert [len(axes.collections) for axes in figure.axes[:2]] == [1, 1]
    collage = figure.axes[2].images[0].get_array()
    known = {
        tuple(pixel)
        for file in (tmp_path / "photos").iterdir()
        for pixel in np.asarray(Image.open(file)).reshape(-1, 3)
    }
    assert len({tuple(pixel) for pixel in np.asarray(collage).reshape(-1, 3)} & known) > 100  # colours of the images


def test_what_has_no_map_is_said(tmp_path: Path):
    with pytest.raises(Absent, match="a map needs at least 10 images, and there are 9"):
        draw(trained(tmp_path / "few", most=9))
    collapsed = trained(tmp_path / "collapsed")
    with torch.no_grad():
        for parameter in collapsed.built.method.parameters():
            parameter.zero_()
    with pytest.raises(Absent, match="are equal, so they have no map: the run collapsed"):
        draw(collapsed)
