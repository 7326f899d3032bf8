"""Folders of photos of several shapes: what is stored of them, and what views show of it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as tv

from eagleray.augment import View, evaluation_view, make_views
from eagleray.augment.parameters import draw_parameters
from eagleray.config import load_run, read_run
from eagleray.config.registry import find
from eagleray.config.sections import DataSettings
from eagleray.contracts.ragged import Ragged
from eagleray.data.decode import decode
from eagleray.data.images import Data, Images, batched, load_data
from eagleray.data.order import epoch_order
from eagleray.data.pixels import Stored
from eagleray.loop import train
from eagleray.runs.assemble import images_of as images_of_run
from eagleray.runs.floors import measure
from eagleray.runs.preview import preview
from eagleray.runs.record import Record
from eagleray.runs.writer import keep_data

SHAPES = ((37, 100), (64, 64), (48, 96), (200, 300), (96, 48), (40, 31))  # height, width


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def photo(number: int) -> Image.Image:
    """A smooth picture with grain, of one of the shapes."""
    height, width = SHAPES[number % len(SHAPES)]
    random = np.random.default_rng(number)
    smooth = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8)).resize((width, height))
    grain = random.integers(-12, 13, (height, width, 3))
    return Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(48):
        place = tmp_path / "images" / "ab"[number // 24]
        place.mkdir(parents=True, exist_ok=True)
        photo(number).save(place / f"{number:02}.png")
    return tmp_path / "images"


def load(folder: Path, shared: dict | None = None, **config) -> Data:
    return load_data("folder", find("data", "folder").Config(root=folder, **config), DataSettings(**(shared or {})), 0)


def images_of(images: Images) -> list[torch.Tensor]:
    return [image for batch in images.batches(torch.arange(len(images)).split(7)) for image in batch]


def all_shapes(count: int = 12) -> tuple[list[torch.Tensor], Ragged]:
    images = [np.asarray(photo(number)).transpose(2, 0, 1).copy() for number in range(count)]
    together = batched(images)
    assert isinstance(together, Ragged)
    return [torch.from_numpy(image) for image in images], together


def views_of(view: View, images: Ragged | torch.Tensor, size: int, exact: bool = False) -> torch.Tensor:
    """In 0..1; the seed of the view's numbers is (1, 2, 0)."""
    return make_views([view], images, size=size, seed=(1, 2), mean=[0.0] * 3, std=[1.0] * 3, exact=exact)[0]


# What is stored


def test_images_are_stored_whole_and_come_back_as_they_were(folder):
    files = sorted(folder.glob("*/*.png"))
    for _ in range(2):  # made, then from the cache
        data = load(folder, {"validation": 0}, stored_size=40)
        stored = data.train._pixels.batches([np.arange(len(files))])
        for image, path in zip(next(stored), files, strict=True):
            np.testing.assert_array_equal(image, decode(str(path), 40, 3))
    assert (data.info.image_size, data.info.stored_size) == (48, 40)
    shapes = {tuple(image.shape[1:]) for image in images_of(data.train)}
    assert shapes == {(37, 100), (40, 40), (40, 80), (40, 60), (80, 40), (40, 31)}


def test_the_default_is_twice_the_size_and_nothing_is_enlarged(folder):
    info = load(folder).info
    assert (info.image_size, info.stored_size) == (48, 96)
    assert {tuple(image.shape[1:]) for image in images_of(load(folder).train)} == {
        (96, 144) if shape == (200, 300) else shape for shape in SHAPES
    }


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_streamed_folder_of_photos_is_bitwise_the_stored_one(folder, tmp_path, workers: int):
    kept = load(folder)
    order = epoch_order(len(kept.train), 6, seed=3, epoch=2)
    expected = list(kept.train.batches(order))
    streamed = load(folder, {"memory_limit": 1, "workers": workers, "cache": tmp_path / "another"})
    assert not isinstance(streamed.train._pixels, Stored)
    assert (streamed.info, streamed.digest) == (kept.info, kept.digest)
    for ours, theirs in zip(streamed.train.batches(order), expected, strict=True):
        assert isinstance(ours, Ragged)
        assert isinstance(theirs, Ragged)
        assert torch.equal(ours.padded, theirs.padded)
        assert torch.equal(ours.sizes, theirs.sizes)


def test_the_digest_tells_images_apart_and_not_where_they_lie(folder, tmp_path):
    digest = load(folder).digest
    shutil.copytree(folder, tmp_path / "moved")
    assert load(tmp_path / "moved").digest == digest
    photo(99).save(next(iter(sorted((tmp_path / "moved").iterdir()))) / "99.png")
    assert load(tmp_path / "moved").digest != digest


def test_mean_and_std_are_those_of_the_pixels_and_not_of_the_padding(folder):
    data = load(folder, {"validation": 0})
    values = torch.cat([image.flatten(1) for image in images_of(data.train)], dim=1).double() / 255
    assert data.info.mean == pytest.approx(values.mean(1).tolist())
    assert data.info.std == pytest.approx(values.std(1, correction=0).tolist())


def test_labelled_photos_can_be_held_in_memory(folder):
    data = load(folder)
    few = data.train.only(np.array([5, 0, 9]))
    assert isinstance(few.in_memory()._pixels, Stored)
    for kept, image in zip(images_of(few.in_memory()), images_of(few), strict=True):
        assert torch.equal(kept, image)


def test_a_batch_of_one_shape_is_an_ordinary_tensor(folder):
    data = load(folder)
    order = [torch.tensor([row, row]) for row in range(len(data.train))]
    assert all(isinstance(batch, torch.Tensor) for batch in data.train.batches(order))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_lies_on_its_side_is_stored_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(3).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        expected = tv.resize(ImageOps.exif_transpose(opened), [50])
    ours = decode(str(tmp_path / "a.jpg"), 50, 3)
    assert ours.shape[1:] == ((75, 50) if orientation > 4 else (50, 75))
    assert np.abs(ours.transpose(1, 2, 0).astype(int) - np.asarray(expected)).max() <= 12


# What views show


@pytest.mark.parametrize("size", [24, 64, 130])
def test_each_photo_is_cropped_within_its_own_shape_as_torchvision_crops(size):
    view, (images, together) = View(crop=(0.08, 1.0), flip=0.5), all_shapes(60)
    drawn = draw_parameters(view, together.sizes, size, (1, 2, 0))
    made = views_of(view, together, size)
    for i, image in enumerate(images):
        (top, left), (height, width) = drawn.corner[:, i].int().tolist(), drawn.box[:, i].int().tolist()
        assert top + height <= image.shape[1]
        assert left + width <= image.shape[2]
        expected = tv.resized_crop(image, top, left, height, width, [size, size], antialias=True)
        expected = tv.horizontal_flip(expected) if drawn.flip[i] else expected
        assert (made[i] * 255 - expected).abs().max() < 1.01  # uint8 there


def test_crops_reach_the_ends_of_every_photo():
    photos = batched([np.zeros((3, 48, 96), np.uint8), np.zeros((3, 96, 48), np.uint8)])
    assert isinstance(photos, Ragged)
    drawn = draw_parameters(View(crop=(0.08, 1.0)), photos.sizes.repeat(2000, 1), 32, (3,))
    ends = drawn.corner + drawn.box
    for number, longer in ((0, 1), (1, 0)):
        assert drawn.corner[longer, number::2].min() == 0
        assert ends[longer, number::2].max() == 96
        assert ends[1 - longer, number::2].max() == 48


@pytest.mark.parametrize("size", [24, 48, 130])
def test_evaluation_is_torchvisions_resize_and_centre_crop(size):
    images, together = all_shapes()
    made = evaluation_view(together, size, [0.0] * 3, [1.0] * 3)
    for image, view in zip(images, made, strict=True):
        expected = tv.center_crop(tv.resize(image, [size], antialias=True), [size, size])
        assert (view * 255 - expected).abs().max() < 1.01


def test_evaluation_of_a_reduced_photo_is_that_of_the_file(tmp_path):
    photo(3).save(tmp_path / "a.png")
    expected = tv.center_crop(tv.resize(photo(3), [48]), [48, 48])
    reduced = decode(str(tmp_path / "a.png"), 96, 3)
    made = evaluation_view(batched([reduced]), 48, [0.0] * 3, [1.0] * 3)[0]
    difference = (made * 255 - torch.from_numpy(np.asarray(expected).transpose(2, 0, 1).copy())).abs()
    assert difference.mean() < 1  # grain of 12 shades, smoothed twice


@pytest.mark.parametrize("stored", [96, 427])  # reduced, and as the file is
def test_evaluation_of_a_real_photo_is_torchvisions(stored):
    for name in ("china.jpg", "flower.jpg"):  # 640 x 427
        path = Path(sklearn.datasets.__file__).parent / "images" / name
        with Image.open(path) as opened:
            expected = np.asarray(tv.center_crop(tv.resize(opened, [48]), [48, 48])).transpose(2, 0, 1)
        image = decode(str(path), stored, 3)
        assert image.shape[1] == stored
        made = 255 * evaluation_view(batched([image]), 48, [0.0] * 3, [1.0] * 3)[0].numpy()
        assert np.abs(made - expected).max() < (1.01 if stored == 427 else 20)
        assert np.abs(made - expected).mean() < (0.6 if stored == 427 else 2)


EVERYTHING = View(
    crop=(0.2, 1.0), shift=0.1, flip=0.5, jitter=0.5, grayscale=0.2, blur=0.5, solarize=0.2, rotate=0.5, cutout=0.3
)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("view", [EVERYTHING, View(shift=0.1, flip=0.5, randaugment=(2, 10)), View()])
def test_a_photo_gives_the_same_view_alone_and_beside_others_of_any_shape(view, exact):
    images, together = all_shapes()
    rubbish = torch.full_like(together.padded, 255)
    for place, image in zip(rubbish, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    made = views_of(view, together, 32, exact)
    assert torch.equal(views_of(view, Ragged(rubbish, together.sizes), 32, exact), made)
    for i, image in enumerate(images):
        same = Ragged(image[None].repeat(len(images), 1, 1, 1), together.sizes[i].expand(len(images), -1))
        alone = views_of(view, same, 32, exact)[i]
        assert ((alone - made[i]).abs() > 1e-4).float().mean() < 0.01  # a shade at a threshold may fall on either side


# Downstream


@pytest.mark.parametrize(("asked", "views"), [([], 48), (["image_size=16"], 16)])
def test_the_record_says_the_sizes_that_the_run_file_leaves_open(folder, tmp_path, asked, views):
    run = load_run(None, ["data=folder", f"data.root={folder}", *asked])
    record = Record.create(tmp_path / "run", name="run", experiment="e", params={}, run=run.file())
    keep_data(run, record, images_of_run(run))
    facts = record.data() or {}
    assert (facts["size"], facts["stored_size"], facts["image_size"]) == (48, 96, views)
    assert record.file()["data"]["stored_size"] is None  # trained again on other photos, their own sizes are found
    assert read_run(record.file()) == run


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "fixmatch", "deepcluster"])
def test_a_run_on_photos_of_several_shapes(folder, tmp_path, method):
    own = {"fixmatch": ["labels.per_class=4"], "deepcluster": ["method.clusters=3"]}.get(method, [])
    settings = ["data=folder", f"data.root={folder}", "image_size=16", "batch_size=8", "epochs=1", "encoder.width=4"]
    run = load_run(None, [f"method={method}", *settings, *own, "data.limit=32"])
    preview(run, tmp_path / "views.png")
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.height > 8 * 96  # eight images, each drawn as large as it is stored, below their views' names
    report = list(train(run, tmp_path / "run"))[-1]
    assert np.isfinite([report.metrics["loss"], report.metrics["test_knn"]]).all()
    if method == "simclr":
        for kind in ("pixels", "kmeans"):
            assert 0 <= measure(kind, run)["knn"] <= 1
