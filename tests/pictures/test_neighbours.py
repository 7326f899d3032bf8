"""Neighbours: planted copies of an image are its nearest, and classes are counted as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eagleray.pictures.catalogue import Absent
from eagleray.pictures.drawing import BLUE, ORANGE
from eagleray.pictures.of_runs.neighbours import agreement, draw, nearest
from pictures.subjects import photos, run_on, trained


def test_the_neighbours_of_an_image_are_its_planted_copies(tmp_path: Path):
    run = trained(tmp_path / "run", run_on, *photos(tmp_path, 14, 3))
    count = len(run.images)
    places, cosines = nearest(run.features, 8)
    assert places.shape == (count, 8)
    pixels = run.pixels(list(range(count)))

    def copies(place: int) -> set[int]:
        return {other for other in range(count) if other != place and np.array_equal(pixels[other], pixels[place])}

    for place in range(count):
        its = copies(place)
        assert set(places[place, : len(its)].tolist()) == its
        assert cosines[place, : len(its)].tolist() == pytest.approx([1] * len(its), abs=1e-5)
        assert place not in places[place]
    assert sum(len(copies(place)) for place in range(count)) > count
    shown = [image.get_array() for image in draw(run).axes[0].images]
    for row, place in enumerate(run.samples(8)):
        image, *others = shown[9 * row : 9 * (row + 1)]
        alike = [np.array_equal(image, other) for other in others]
        assert alike == [number < len(copies(place)) for number in range(8)]


def test_the_nearest_are_those_of_a_slow_search_the_first_one_first():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    places, cosines = nearest(features, 5)
    for one in range(40):
        others = [other for other in range(40) if other != one]
        alike = {other: torch.cosine_similarity(features[one], features[other], dim=0).item() for other in others}
        wanted = sorted(others, key=lambda other: -alike[other])[:5]
        assert places[one].tolist() == wanted
        assert cosines[one].tolist() == pytest.approx([alike[other] for other in wanted], abs=1e-5)


def test_agreement_counts_known_pairs_beside_chance():
    labels = np.array([0, 0, 0, 1, -1])
    places = np.array([[1, 4], [3, 0], [3, 4], [0, 1], [0, 1]])
    assert agreement(np.array([0, -1, -1]), np.array([[1, 2], [0, 2], [0, 1]])) is None
    assert agreement(labels, places) == (pytest.approx(2 / 6), pytest.approx(3 * 2 / (4 * 3)))


def test_frames_and_marks_say_whether_classes_agree(tmp_path: Path):
    run = trained(tmp_path / "run")
    axes = draw(run).axes[0]
    places, _ = nearest(run.features, 8)
    assert run.labels is not None
    wanted = [run.labels[place] == run.labels[other] for place in run.samples(8) for other in places[place].tolist()]
    frames = [tuple(round(255 * part) for part in patch.get_edgecolor()[:3]) for patch in axes.patches]
    assert frames == [tuple(bytes.fromhex((BLUE if same else ORANGE)[1:])) for same in wanted]
    marks = [text.get_text()[0] for text in axes.texts if text.get_text()[:1] in ("✓", "✗")]
    assert marks == ["✓" if same else "✗" for same in wanted]
    assert True in wanted
    assert False in wanted


def test_too_few_images_are_said(tmp_path: Path):
    with pytest.raises(Absent, match="8 neighbours need more than 8 images, and there are 8"):
        draw(trained(tmp_path / "run", most=8))
