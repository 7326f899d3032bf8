"""The preview shows what training sees: the same tensors, crops where the views were cut, images of every class."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms import functional as reference

from eagleray.config import load_run, load_sweep
from eagleray.contracts.view import View
from eagleray.data.images import load_data
from eagleray.runs.assemble import assemble
from eagleray.runs.preview import BLOCKS, CELL, COLORS, blocks, chosen, preview, preview_sweep

WIDTH = 3 * (CELL + 6) + 6  # of a block of two views: cells of 96 pixels and gaps of 6


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Return settings of 40 colour images of two shapes, without classes."""
    noise = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(40):
        pixels = noise.integers(0, 256, (24, 30 if number % 2 else 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number:02d}.png")
    place = f"data.root={tmp_path / 'photos'}"
    return ["data=folder", place, f"data.cache={tmp_path / 'cache'}", "data.size=12", "batch_size=16"]


@pytest.mark.parametrize(
    "settings",
    [
        ["method=simclr", "seed=3"],
        ["method=simclr", "workers=2", "augment.exact=true"],
        ["method=simclr", "batch_size=2"],
        ["method=dino", "encoder=convnet"],
        ["method=fixmatch", "labels.per_class=4"],
        ["method=supervised", "labels.per_class=4"],
        ["photos", "method=byol"],
    ],
    ids=" ".join,
)
def test_the_tensors_are_bitwise_those_of_the_first_worker_in_the_first_step(settings: list[str], photos: list[str]):
    settings = [text for setting in settings for text in (photos if setting == "photos" else [setting])]
    run = load_run(None, [*settings, "threads=1"])
    batch = next(assemble(run).loader.epoch(0, 0))
    parts = {False: batch, True: batch.labelled}
    kinds = [is_labelled for is_labelled in (False, True) if (part := parts[is_labelled]) and part.views]
    found = list(blocks(run))
    assert len(found) == len(kinds) > 0
    for block, is_labelled in zip(found, kinds, strict=True):
        part = parts[is_labelled]
        assert part is not None
        size = len(part.indices) // run.workers
        assert len(block.rows) == min(8, size)
        for row in block.rows:
            # A labelled image may come several times in a batch, each time with other views.
            same = [n for n in range(size) if is_labelled or part.indices[n] == row.sample.index]
            theirs = [[view[n] for view in part.views] for n in same]
            assert any(all(map(torch.equal, row.sample.views, views)) for views in theirs)


def test_the_boxes_are_where_the_views_were_cut(photos: list[str]):
    """torchvision, cutting the stored image there and resizing it, gives the same view."""
    run = load_run(None, [*photos, 'augment.only=["crop"]'])
    (block,) = blocks(run)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (block.data.info.mean, block.data.info.std))
    boxes = [box for row in block.rows for box in row.sample.boxes]
    assert len(set(boxes)) > 8
    for row in block.rows:
        image = row.sample.image.float() / 255
        for box, view in zip(row.sample.boxes, row.sample.views, strict=True):
            wanted = reference.resized_crop(image, *box, size=[12, 12], antialias=True)
            torch.testing.assert_close(view * std + mean, wanted, rtol=1e-4, atol=1e-4)


def test_the_images_are_of_all_classes():
    (block,) = blocks(load_run(None, []))
    assert [row.name for row in block.rows] == ["0", "1", "3", "4", "5", "6", "8", "9"]
    data = load_data("digits", load_run(None, []).data.config, load_run(None, []).data.settings, 0)
    assert data.train.labels is not None
    assert [str(data.train.labels[row.sample.index]) for row in block.rows] == [row.name for row in block.rows]


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        ([0, 0, 0, 0, 0, 1, 1, 2], [0, 1, 5, 7]),  # each class once, then the largest again
        ([3, 1, 3, 1, 3, 1, 3, 1], [1, 3, 0, 2]),
        ([0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 5, 7]),  # more classes than rows: evenly spaced
        ([-1, -1, -1, -1, -1, -1, -1, 5], [0, 1, 2, 7]),
        ([4, 4], [0, 1]),
    ],
)
def test_rows_are_spread_over_the_classes(classes: list[int], wanted: list[int]):
    found = chosen(np.arange(len(classes)), np.array(classes), 4)
    assert found == wanted


def test_without_classes_rows_are_spread_over_the_folder():
    places = np.array([90, 10, 50, 20, 80, 30, 70])
    assert [places[row] for row in chosen(places, None, 4)] == [10, 30, 70, 90]


def test_the_words_of_a_view_name_what_it_does():
    view = View(crop=(0.2, 1.0), flip=0.5, jitter=0.5, randaugment=(2, 10), blur=0.1)
    assert view.words == (
        "crop 0.2 to 1 (ratio 0.75 to 1.33), flip in 50%, jitter 0.5 (scale 0.8 0.8 0.8 0.2, probability 0.8), "
        "blur in 10% (sigma 0.1 to 2), randaugment 2 10"
    )
    assert View().words == ""


def test_the_picture_shows_the_crops_on_the_image_and_the_views_next_to_it(tmp_path: Path):
    run = load_run(None, [])
    (block,) = blocks(run)
    preview(run, tmp_path / "views.png")
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.width == WIDTH
        row = block.rows[0]
        top = picture.height - 8 * (14 + CELL + 6) + 14  # of the first row's image
        pixel = CELL // 8
        for place, color in enumerate(COLORS[:2]):
            y, x, height, _ = row.sample.boxes[place]
            corner = picture.getpixel((6 + x * pixel, top + y * pixel + (height * pixel) // 2))
            later = [box for box in row.sample.boxes[place + 1 :] if box[1] == x]
            assert later or corner == tuple(bytes.fromhex(color[1:]))
            left = 6 + (place + 1) * (CELL + 6)
            shown = (
                picture.crop((left, top, left + CELL, top + CELL)).convert("L").resize((8, 8), Image.Resampling.NEAREST)
            )
            mean, std = block.data.info.mean[0], block.data.info.std[0]
            wanted = ((row.sample.views[place][0] * std + mean).clamp(0, 1) * 255).round()
            assert np.array_equal(np.array(shown), wanted.numpy())


def test_a_sweep_has_a_block_for_each_value_that_changes_the_views(tmp_path: Path):
    file, sweep = tmp_path / "s.yaml", {"name": "s", "search": "grid", "vary": {"augment.flip": [0, 0.5, 1],
                   "augment.crop_min": [0.2, 0.8], "method.temperature": [0.1, 0.5]}}  # fmt: skip
    file.write_text(yaml.safe_dump(sweep, sort_keys=False))
    assert preview_sweep(load_sweep(file, []), tmp_path / "a.png") == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 4 * WIDTH + 3 * 6
        # With and without flips, the same image with the same crops stands in the same place.
        one, other = (
            picture.crop((left, picture.height - 900, left + CELL, picture.height)) for left in (6, 6 + WIDTH + 6)
        )
        assert one.tobytes() == other.tobytes()
    sweep["vary"] = {"augment.flip": [n / 20 for n in range(12)]}
    file.write_text(yaml.safe_dump(sweep, sort_keys=False))
    assert preview_sweep(load_sweep(file, []), tmp_path / "b.png") == 12 - BLOCKS
    sweep["vary"] = {"run": [{"method": "simclr"}, {"method": "byol"}], "seed": [0, 1]}
    file.write_text(yaml.safe_dump(sweep, sort_keys=False))
    assert preview_sweep(load_sweep(file, []), tmp_path / "c.png") == 0
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width == 2 * WIDTH + 6


@pytest.mark.slow
def test_a_preview_takes_less_than_ten_seconds_of_a_core(tmp_path: Path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    sweep = Path(__file__).parents[2] / "sweeps/quickstart.yaml"
    command = [sys.executable, "-m", "eagleray", "preview", str(sweep), "--out", str(tmp_path / "views.png")]
    subprocess.run(command, check=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
