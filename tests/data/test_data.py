"""Reading, keeping, splitting and ordering images."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import astuple
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from eagleray.config import load_run
from eagleray.config.registry import find
from eagleray.config.sections import DataSettings, Labels
from eagleray.contracts.dataset import Dataset, Decoding, Part
from eagleray.contracts.errors import ConfigError
from eagleray.data import archive
from eagleray.data.decode import Bad, decode, settled
from eagleray.data.description import described
from eagleray.data.facts import facts_of
from eagleray.data.images import Data, Images, load_data
from eagleray.data.order import epoch_order, labelled_order
from eagleray.data.pixels import Stored
from eagleray.data.splits import held_out, long_tailed


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "eagleray"


def load(name: str, seed: int = 0, *, shared: dict | None = None, **config) -> Data:
    return load_data(name, find("data", name).Config(**config), DataSettings(**(shared or {})), seed)


def pixels_of(images: Images) -> torch.Tensor:
    return torch.cat(list(images.batches(torch.arange(len(images)).split(7))))


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def write_noise(folder: Path, classes: dict[str, int], size: tuple[int, int] = (12, 10)) -> Path:
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise(size, 1000 * number + i).save(folder / name / f"{i:03}.{'jpg' if i % 2 else 'png'}")
    return folder


# --- decoding one file ---


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (40, 40), (100, 37), (8, 12), (16, 16)])
def test_decoding_is_torchvisions_resize_but_never_enlarges(tmp_path, size):
    image = noise(size, 0)
    image.save(tmp_path / "image.png")
    expected = np.asarray(image if min(size) <= 16 else reference.resize(image, [16])).transpose(2, 0, 1)
    ours = decode(str(tmp_path / "image.png"), 16, 3)
    assert ours.shape == expected.shape
    assert np.abs(ours.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size", [(30, 200), (200, 30)])
def test_the_middle_of_a_panorama_is_stored(tmp_path, size):
    image = noise(size, 0)
    image.save(tmp_path / "image.png")
    whole = np.asarray(image).transpose(2, 0, 1)
    middle = whole[:, 55:145] if size[1] == 200 else whole[:, :, 55:145]
    np.testing.assert_array_equal(decode(str(tmp_path / "image.png"), 30, 3), middle)
    cut = Image.fromarray(np.ascontiguousarray(middle.transpose(1, 2, 0)))
    expected = np.asarray(reference.resize(cut, [10])).transpose(2, 0, 1)
    difference = np.abs(decode(str(tmp_path / "image.png"), 10, 3).astype(int) - expected)
    assert difference[:, 1:-1, 1:-1].max() <= 1  # at a cut Pillow also weighs what lies beyond it


def test_an_image_of_the_right_size_is_not_touched(tmp_path):
    image = noise((9, 9), 0)
    image.save(tmp_path / "image.png")
    np.testing.assert_array_equal(decode(str(tmp_path / "image.png"), 9, 3).transpose(1, 2, 0), np.asarray(image))


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    smooth = Image.linear_gradient("L").resize((1600, 1200))
    smooth.save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as opened:
        expected = reference.resize(opened, [30])
    ours = decode(str(tmp_path / "large.jpg"), 30, 1)[0]
    assert np.abs(ours.astype(int) - np.asarray(expected)).max() <= 2


def test_every_kind_of_pixel_becomes_eight_bits(tmp_path):
    def decoded(image: Image.Image, channels: int = 3, name: str = "image.png", **options) -> list[int]:
        image.save(tmp_path / name, **options)
        result = decode(str(tmp_path / name), 4, channels)
        assert result.dtype == np.uint8
        return result[:, 1, 1].tolist()

    wide = Image.fromarray(np.full((4, 4), 0xABCD, np.uint16))
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    cmyk = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert decoded(wide, 1) == [0xAB]
    assert decoded(wide) == [0xAB] * 3
    assert decoded(wide, 1, "image.tif") == [0xAB]
    assert decoded(palette) == [10, 200, 30]
    assert decoded(Image.new("1", (4, 4), 1), 1) == [255]
    assert decoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128))) == [255, 127, 127]  # over white
    assert decoded(Image.new("LA", (4, 4), (0, 0)), 1) == [255]
    assert decoded(palette, transparency=0) == [255, 255, 255]
    assert np.allclose(decoded(cmyk, name="image.jpg"), [0, 255, 255], atol=2)
    assert decoded(Image.new("RGB", (4, 4), (255, 0, 0)), 1) == [76]  # ITU-R 601: 0.299 red


def test_images_are_turned_upright(tmp_path):
    image = noise((8, 8), 0)
    for orientation, turned in (
        (1, image),
        (3, image.rotate(180)),
        (6, image.rotate(-90)),
        (8, image.rotate(90)),
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / "image.png", exif=exif)
        ours = decode(str(tmp_path / "image.png"), 8, 3).transpose(1, 2, 0)
        np.testing.assert_array_equal(ours, np.asarray(turned))


def test_what_is_no_image_says_why(tmp_path):
    noise((32, 32), 0).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone")
    reasons = {
        "cut.jpg": "truncated",
        "text.png": "not an image",
        "empty.png": "not an image",
        "nowhere.png": "No such file",
    }
    for name, reason in {**reasons, "float.tif": "32 bits"}.items():
        bad = decode(str(tmp_path / name), 8, 3)
        assert isinstance(bad, Bad)
        assert reason in bad.reason


def test_size_and_channels_suit_the_images(tmp_path):
    def settled_on(*images: Image.Image, **decoding) -> tuple[int, int, int, int]:
        paths = [str(tmp_path / f"{i}.png") for i in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            image.save(path)
        return astuple(settled(Decoding(**decoding), paths))

    grey, colour = noise((20, 30), 0).convert("L"), noise((30, 24), 0)
    grey_palette = grey.convert("P")
    assert settled_on(grey) == (20, 40, 1, 600)
    assert settled_on(grey, grey_palette, Image.new("1", (20, 20))) == (20, 40, 1, 1600)
    assert settled_on(grey, colour, colour) == (24, 48, 3, 3 * (600 + 2 * 720))
    assert settled_on(colour.convert("P")) == (24, 48, 3, 3 * 720)
    assert settled_on(noise((500, 400), 0)) == (64, 128, 3, 3 * 128 * 160)
    assert settled_on(noise((500, 400), 0), stored_size=90) == (64, 90, 3, 3 * 90 * 112)
    assert settled_on(colour, size=100, channels=1) == (100, 200, 1, 720)


# --- sources ---


def test_digits_are_split_once_and_for_all():
    data = load("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 143, 359)
    assert data.info.image_size == 8
    assert (data.info.channels, data.info.classes, data.info.samples) == (1, 10, 1295)
    assert data.class_names == tuple("0123456789")
    parts = (data.train, data.validation, data.test)
    rows = np.concatenate([part._rows for part in parts])
    np.testing.assert_array_equal(np.sort(rows), np.arange(1797))
    for part in parts:  # labels lie where their images lie
        digits = find("data", "digits").load()("digits", None).parts()["train"]
        np.testing.assert_array_equal(part.labels, digits.labels[part._rows])
        np.testing.assert_array_equal(pixels_of(part), digits.images[part._rows])


def test_mean_and_std_are_those_of_train():
    data = load("digits", shared={"validation": 0})
    values = pixels_of(data.train).double() / 255
    assert data.info.mean == pytest.approx([values.mean().item()])
    assert data.info.std == pytest.approx([values.std(correction=0).item()])
    assert data.info.mean == load("digits", seed=5).info.mean


def test_one_flat_colour_does_not_divide_by_nothing(tmp_path):
    for i in range(4):
        Image.new("RGB", (8, 8), (255, 0, 128)).save(tmp_path / f"{i}.png")
    info = load("folder", root=tmp_path).info
    assert info.mean == pytest.approx((1, 0, 128 / 255))
    assert info.std == pytest.approx([1 / 255] * 3)


def test_a_folder_of_classes(tmp_path):
    write_noise(tmp_path, {"a": 20, "b": 20})
    data = load("folder", root=tmp_path)
    assert data.class_names == ("a", "b")
    assert (data.info.image_size, data.info.channels, data.info.classes) == (10, 3, 2)
    assert np.bincount(data.train.labels).tolist() == [14, 14]  # 20 - 4 (test) - 2 (validation)
    assert np.bincount(data.validation.labels).tolist() == [2, 2]
    assert np.bincount(data.test.labels).tolist() == [4, 4]
    assert data.skipped == 0


def test_a_folder_without_classes(tmp_path):
    write_noise(tmp_path, {".": 20})
    data = load("folder", root=tmp_path)
    assert data.class_names is None
    assert data.info.classes is None
    assert [part.labels for part in (data.train, data.validation, data.test)] == [None] * 3
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)


def test_unlabelled_images_join_training_alone(tmp_path):
    write_noise(tmp_path, {"train/a": 10, "train/b": 10, "unlabelled": 30, "test/a": 3})
    data = load("folder", root=tmp_path)
    assert np.unique(data.train.labels, return_counts=True)[1].tolist() == [30, 9, 9]
    assert (data.train.labels == -1).sum() == 30
    assert data.validation.labels.min() == 0
    assert data.test.labels.tolist() == [0, 0, 0]
    assert not (data.train.labels[data.labelled(Labels(per_class=5), seed=0)] < 0).any()


def test_a_source_keeps_its_own_validation(tmp_path):
    write_noise(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2, "test/a": 3})
    data = load("folder", root=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 4, 3)


LABELS = [
    ("train", [0, 1, 255], ("cat", "dog"), "has 2 classes, and an image of train has the label 255: labels count"),
    ("train", [0, 1, -5], ("cat", "dog"), "an image of train has the label -5"),
    ("test", [0, 1, 2], ("cat", "dog"), "an image of test has the label 2"),
    ("train", [0, 1], ("cat", "dog"), "has 3 images of train with 2 labels, and 2 class names"),
    ("train", [0, 1, 0], None, "has 3 images of train with 3 labels, and no class names"),
]


@pytest.mark.parametrize(("part", "labels", "names", "said"), LABELS)
def test_labels_outside_the_classes_are_refused_for_every_source(part, labels, names, said, cache):
    class Some(Dataset):
        names: ClassVar[tuple[str, ...]] = ("some",)

        def parts(self):
            good = Part(np.zeros((3, 1, 8, 8), np.uint8), np.array([0, 1, 0]) if names else None)
            return {"train": good, "test": good, part: Part(np.zeros((3, 1, 8, 8), np.uint8), np.array(labels))}

        def class_names(self):
            return names

    some = Some("some", Dataset.Config())
    with pytest.raises(ConfigError, match=said):
        archive.parts_of(some)
    with pytest.raises(ConfigError, match=said):
        archive.open_archive(some, DataSettings(cache=cache))
    assert not list(cache.glob("*.npz"))


def test_too_few_images_are_refused(tmp_path):
    for count, words in ((0, "contains no images"), (1, "leaves 1 image"), (2, "leaves 1 image")):
        folder = tmp_path / str(count)
        folder.mkdir()
        write_noise(folder, {".": count})
        with pytest.raises(ConfigError, match=words):
            load("folder", root=folder)
    write_noise(tmp_path / "few", {".": 4})
    data = load("folder", root=tmp_path / "few")
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 1, 1)


def test_a_class_of_one_image_stays_in_training(tmp_path):
    write_noise(tmp_path, {"rare": 1, "common": 100})
    data = load("folder", root=tmp_path)
    assert np.bincount(data.train.labels).tolist() == [72, 1]  # common, rare
    assert data.test.labels.tolist() == [0] * 20
    with pytest.raises(ConfigError, match=r"labels\.per_class=5: train has 1 images of class 'rare'"):
        data.labelled(Labels(per_class=5), seed=0)


# --- bad images ---


def spoilt(folder: Path, count: int) -> Path:
    write_noise(folder, {"a": 20, "b": 20})
    for i in range(count):
        (folder / "a" / f"{i:03}.png").write_bytes(b"spoilt")
    return folder


@pytest.mark.parametrize("limit", ["1 GiB", 1])
def test_bad_images_are_all_counted_and_ten_are_named(tmp_path, limit, cache):
    spoilt(tmp_path, 13)
    with pytest.raises(
        ConfigError, match=r"^13 of \d+ files cannot be read .* and 3 more.*data\.bad_images=skip"
    ) as error:
        load("folder", root=tmp_path, shared={"memory_limit": limit})
    assert str(error.value).count("spoilt") == 0
    assert str(error.value).count("(not an image)") == 10
    assert {path.suffix for path in cache.iterdir()} <= {".lock"}  # nothing half made is left


@pytest.mark.parametrize("limit", ["1 GiB", 1])
def test_bad_images_are_left_out_and_counted(tmp_path, limit):
    spoilt(tmp_path, 10)
    (tmp_path / "b" / "notes.txt").write_text("these are dogs")
    for _ in range(2):  # made, then from the cache
        data = load("folder", root=tmp_path, bad_images="skip", shared={"memory_limit": limit, "workers": 0})
        assert data.skipped == 10
        assert data.notes == ("1 file left out, hidden or not named like images (notes.txt)",)
        parts = (data.train, data.validation, data.test)
        assert sum(map(len, parts)) == 35  # every other one of the ten was an image before
        for part in parts:
            assert (pixels_of(part).flatten(1).float().std(1) > 20).all()  # noise, no black one


def test_nothing_but_bad_images(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(ConfigError, match="none can be read as an image"):
        load("folder", root=tmp_path, bad_images="skip")


# --- the cache ---


def test_images_are_decoded_once(tmp_path, monkeypatch):
    write_noise(tmp_path, {"a": 10, "b": 10})
    first = pixels_of(load("folder", root=tmp_path).train)
    monkeypatch.setattr(archive, "decode", None)
    monkeypatch.setattr(archive, "settled", None)
    assert torch.equal(pixels_of(load("folder", root=tmp_path).train), first)


def test_a_changed_folder_is_read_anew_and_the_old_cache_goes(tmp_path, cache):
    write_noise(tmp_path, {"a": 10, "b": 10})
    before = len(load("folder", root=tmp_path, shared={"validation": 0}).train)
    names = set(os.listdir(cache))
    noise((12, 10), 99).save(tmp_path / "a" / "another.png")
    os.utime(tmp_path / "b" / "000.png", ns=(1, 1))
    after = len(load("folder", root=tmp_path, shared={"validation": 0}).train)
    assert after == before + 1
    assert len(os.listdir(cache)) == len(names) == 3  # images, index, lock
    assert len(names & set(os.listdir(cache))) == 1


def test_a_file_changed_in_place_is_read_anew(tmp_path):
    for i in range(4):
        noise((8, 8), i).save(tmp_path / f"{i}.bmp")
    before = load("folder", root=tmp_path).info.mean
    for i in range(4):
        noise((8, 8), 10 + i).save(tmp_path / f"{i}.bmp")  # of the same size
        os.utime(tmp_path / f"{i}.bmp", ns=(1, 1))
    assert load("folder", root=tmp_path).info.mean != before


def test_other_settings_of_a_source_have_another_cache(tmp_path):
    write_noise(tmp_path, {"a": 5, "b": 5})
    assert load("folder", root=tmp_path, size=8).info.image_size == 8
    assert load("folder", root=tmp_path, size=6).info.image_size == 6
    assert load("folder", root=tmp_path, channels="grey").info.channels == 1


@pytest.mark.parametrize("ending", ["bin", "npz"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "changed", "removed"])
def test_a_damaged_cache_is_made_anew(tmp_path, cache, ending, damage):
    write_noise(tmp_path, {"a": 10, "b": 10})
    first = pixels_of(load("folder", root=tmp_path).train)
    (path,) = cache.glob(f"*.{ending}")
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        content[-40] ^= 255
        path.write_bytes({"cut": content[:-50], "emptied": b"", "changed": content}[damage])
    assert torch.equal(pixels_of(load("folder", root=tmp_path).train), first)
    assert sorted(path.suffix for path in cache.iterdir()) == [".bin", ".lock", ".npz"]


def test_nobody_can_write_to_the_cache(cache):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load("digits")
        mapped = data.train._pixels._mapped
        before = pixels_of(data.train).clone()
        for batch in data.train.batches([torch.arange(50)]):
            batch.fill_(7)  # the caller's own copy
    assert torch.equal(pixels_of(data.train), before)
    assert torch.equal(pixels_of(load("digits").train), before)
    assert not mapped.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        mapped.flags.writeable = True
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0


def test_the_cache_is_in_the_chosen_folder(tmp_path, cache):
    load("digits", shared={"cache": tmp_path / "here"})
    assert not cache.exists()
    assert sorted(path.suffix for path in (tmp_path / "here").iterdir()) == [".bin", ".lock", ".npz"]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written.*set data\.cache"):
        load("digits", shared={"cache": tmp_path / "file" / "below"})


def test_a_full_disk_is_a_config_error_and_leaves_nothing(tmp_path, monkeypatch, cache):
    write_noise(tmp_path, {"a": 5, "b": 5})
    real = os.fsync

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"No space left.*set data\.cache"):
        load("folder", root=tmp_path)
    assert {path.suffix for path in cache.iterdir()} <= {".lock"}
    monkeypatch.setattr(os, "fsync", real)
    assert len(load("folder", root=tmp_path).train) == 6


def test_many_at_once_make_one_cache(tmp_path, monkeypatch):
    write_noise(tmp_path, {"a": 10, "b": 10})
    made, real = [], archive._write

    def counted(*arguments):
        made.append(1)
        time.sleep(0.2)
        return real(*arguments)

    monkeypatch.setattr(archive, "_write", counted)
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(pixels_of(load("folder", root=tmp_path).train)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(results) == 6
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.slow
def test_processes_share_one_cache_file(tmp_path, cache):
    write_noise(tmp_path, {"a": 30, "b": 30})
    code = (
        "import os, sys; from eagleray.data.archive import open_archive; from eagleray.config.registry import find;"
        "from eagleray.config.sections import DataSettings; from pathlib import Path;"
        "folder = find('data', 'folder'); config = folder.Config(root=sys.argv[1]);"
        "archive = open_archive(folder.load()('folder', config), DataSettings());"
        "print([path.stat().st_ino for path in sorted(Path(sys.argv[2]).glob('*.[bn]*'))])"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(cache)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate(timeout=60)[0] for process in started}
    assert len(outputs) == 1  # a second process that wrote the cache would have replaced the files
    assert [process.returncode for process in started] == [0, 0, 0]


# --- streaming ---


DECODERS = pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])  # processes that decode


@DECODERS
def test_a_streamed_folder_is_bitwise_the_cached_one(tmp_path, workers: int):
    write_noise(tmp_path / "images", {"a": 25, "b": 25}, size=(30, 41))
    kept = load("folder", root=tmp_path / "images", size=16)
    order = epoch_order(len(kept.train), 6, seed=3, epoch=2)
    expected = list(kept.train.batches(order))
    shared = {"memory_limit": 1, "workers": workers, "cache": tmp_path / "another"}
    streamed = load("folder", root=tmp_path / "images", size=16, shared=shared)
    assert not isinstance(streamed.train._pixels, Stored)
    assert streamed.info == kept.info
    np.testing.assert_array_equal(streamed.train.labels, kept.train.labels)
    batches = list(streamed.train.batches(order))
    assert len(batches) == len(expected) == 6
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(batches, expected, strict=True))
    assert torch.equal(pixels_of(streamed.test), pixels_of(kept.test))
    assert not list((tmp_path / "another").glob("*.bin"))


def test_a_higher_limit_brings_the_images_into_memory(tmp_path):
    write_noise(tmp_path, {"a": 10, "b": 10})
    streamed = load("folder", root=tmp_path, shared={"memory_limit": 20 * 360 - 1, "workers": 0})
    kept = load("folder", root=tmp_path, shared={"memory_limit": 20 * 360})
    assert not isinstance(streamed.train._pixels, Stored)
    assert isinstance(kept.train._pixels, Stored)
    assert torch.equal(pixels_of(streamed.train), pixels_of(kept.train))


def streamed_folder(folder: Path, workers: int) -> Data:
    write_noise(folder, {"a": 20, "b": 20})
    return load("folder", root=folder, shared={"memory_limit": 1, "workers": workers})


@DECODERS
def test_two_streams_at_once_and_one_left_early(tmp_path, workers: int):
    data = streamed_folder(tmp_path, workers)
    everything = pixels_of(data.train)
    order = list(torch.arange(len(data.train)).split(3))
    outer = data.train.batches(order)
    for i, batch in zip(range(4), outer, strict=False):
        assert torch.equal(batch, everything[order[i]])
        assert torch.equal(next(iter(data.train.batches([order[-1]]))), everything[order[-1]])
    del outer
    assert torch.equal(pixels_of(data.train), everything)


def test_labelled_images_can_be_held_in_memory(tmp_path):
    data = streamed_folder(tmp_path, workers=0)
    chosen = data.labelled(Labels(per_class=3), seed=0)
    few = data.train.only(chosen.numpy()).in_memory()
    assert isinstance(few._pixels, Stored)
    assert torch.equal(pixels_of(few), pixels_of(data.train)[chosen])
    np.testing.assert_array_equal(few.labels, data.train.labels[chosen])


@DECODERS
def test_a_file_that_goes_bad_later_is_named(tmp_path, workers: int):
    data = streamed_folder(tmp_path, workers)
    data.train._pixels._paths[data.train._rows[5]] = str(tmp_path / "gone.png")
    with pytest.raises(ConfigError, match=r"gone\.png could be read .* but cannot now: .*No such file"):
        pixels_of(data.train)


def children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
def test_a_killed_worker_is_an_error_and_not_a_hang(tmp_path):
    data = streamed_folder(tmp_path, workers=1)
    next(iter(data.train.batches([torch.tensor([0])])))
    (worker,) = [pid for pid in children() if "eagleray.data.workers" in command_of(pid)]
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="was killed"):
        pixels_of(data.train)


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


SCRIPT = """
import sys, time
import numpy as np
from pathlib import Path
from eagleray.data.pixels import Streamed

images = Streamed(sorted(map(str, Path(sys.argv[1]).glob("*/*"))), size=8, channels=3, workers=2)
print(sum(len(batch) for batch in images.batches(np.split(np.arange(40), 10))), flush=True)
tasks = Path("/proc/self/task").iterdir()
print(*[pid for task in tasks for pid in (task / "children").read_text().split()], flush=True)
time.sleep(float(sys.argv[2]))
"""  # no `if __name__ == "__main__"`, as in many scripts of users


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("end", ["killed", "well"])
def test_workers_end_with_the_process_they_work_for(tmp_path, end):
    write_noise(tmp_path / "images", {"a": 20, "b": 20})
    (tmp_path / "script.py").write_text(SCRIPT)
    seconds = "60" if end == "killed" else "0"
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "images"), seconds]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "40\n"
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        if end == "killed":
            process.kill()
        assert process.communicate(timeout=30) == ("", "")  # no complaint from anyone
    assert process.returncode == (-signal.SIGKILL if end == "killed" else 0)
    for _ in range(100):
        alive = [pid for pid in workers if Path(f"/proc/{pid}").exists() and "eagleray" in command_of(pid)]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive


# --- splits ---


def test_validation_depends_on_the_seed_and_test_does_not():
    zero, again, one = load("digits", 0), load("digits", 0), load("digits", 1)
    np.testing.assert_array_equal(zero.validation._rows, again.validation._rows)
    np.testing.assert_array_equal(zero.test._rows, one.test._rows)
    assert set(zero.validation._rows) != set(one.validation._rows)
    for data in (zero, one):
        assert not set(data.train._rows) & set(data.validation._rows)
        assert not set(data.test._rows) & (set(data.train._rows) | set(data.validation._rows))


def test_validation_can_be_left_out():
    data = load("digits", shared={"validation": 0})
    assert data.validation is None
    assert len(data.train) == 1797 - 359


def test_limit_takes_as_many_images_and_leaves_the_rest_alone():
    whole, part, other = (
        load("digits"),
        load("digits", shared={"limit": 100}),
        load("digits", 1, shared={"limit": 100}),
    )
    assert len(part.train) == part.info.samples == 100
    assert set(part.train._rows) < set(whole.train._rows)
    assert set(part.train._rows) != set(other.train._rows)
    np.testing.assert_array_equal(part.validation._rows, whole.validation._rows)
    np.testing.assert_array_equal(part.train.labels, load("digits", shared={"limit": 100}).train.labels)
    assert len(load("digits", shared={"limit": 10**6}).train) == len(whole.train)


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    unlabelled=st.integers(0, 5),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**40),
)
def test_a_share_of_every_class_is_held_out(counts, unlabelled, share, seed):
    labels = np.repeat([*range(len(counts)), -1], [*counts, unlabelled])
    labels = np.random.default_rng(seed).permutation(labels)
    held = held_out(len(labels), labels, share, (0, seed))
    assert (np.diff(held) > 0).all()
    taken = np.bincount(labels[held], minlength=len(counts)) if len(held) else np.zeros(len(counts))
    assert not (labels[held] < 0).any()
    for count, out in zip(counts, taken, strict=True):
        assert out == (0 if count < 2 else min(max(1, round(share * count)), count - 1))


def test_labelled_images_are_balanced_and_hang_on_the_seed_alone():
    data = load("digits")
    chosen = data.labelled(Labels(per_class=7), seed=3)
    assert chosen.dtype == torch.int64
    assert np.bincount(data.train.labels[chosen]).tolist() == [7] * 10
    assert len(set(chosen.tolist())) == 70
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(chosen, load("digits").labelled(Labels(per_class=7), seed=3))
    assert not torch.equal(chosen, data.labelled(Labels(per_class=7), seed=4))
    with pytest.raises(ConfigError, match=r"labels\.per_class=1000: train has \d+ images of class"):
        data.labelled(Labels(per_class=1000), seed=0)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 1.0])
def test_a_fraction_of_every_class_keeps_its_labels(fraction):
    data = load("digits")
    known = data.train.labels
    assert known is not None
    chosen = data.labelled(Labels(fraction=fraction), seed=3)
    counts = np.bincount(known)
    expected = [max(1, round(fraction * count)) for count in counts]
    assert np.bincount(known[chosen]).tolist() == expected
    assert len(set(chosen.tolist())) == sum(expected)
    assert torch.equal(chosen, chosen.sort().values)
    assert set(data.labelled(Labels(fraction=fraction / 2), seed=3).tolist()) <= set(chosen.tolist())
    if fraction < 1:
        assert not torch.equal(chosen, data.labelled(Labels(fraction=fraction), seed=4))


def test_a_fraction_of_a_class_without_images_is_refused(tmp_path):
    write_noise(tmp_path, {"train/a": 4, "train/b": 4})
    (tmp_path / "labels.csv").write_text("a/000.png,a\na/001.jpg,a\nb/000.png,b\n")
    folder = {"root": tmp_path / "train", "labels": str(tmp_path / "labels.csv")}
    data = load("folder", shared={"validation": 0}, **folder)
    assert len(data.labelled(Labels(fraction=0.1), seed=0)) == 2
    data.train.labels[data.train.labels == 1] = -1
    with pytest.raises(ConfigError, match=r"labels\.fraction=0\.1: train has 0 images of class 'b'"):
        data.labelled(Labels(fraction=0.1), seed=0)


# The counts that papers on long-tailed CIFAR-10 print: 5,000 images of the first class, and imbalance 100.
LONG_TAILED_CIFAR10 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_a_long_tail_has_the_counts_of_the_papers_and_keeps_unlabelled_images():
    labels = np.random.default_rng(0).permutation(np.repeat([*range(10), -1], [*[5000] * 10, 70]))
    kept = long_tailed(labels, 100, seed=0, classes=10)
    assert (np.diff(kept) > 0).all()
    assert np.bincount(labels[kept][labels[kept] >= 0]).tolist() == LONG_TAILED_CIFAR10
    assert (labels[kept] < 0).sum() == 70
    assert set(long_tailed(labels, 150, seed=0, classes=10)) < set(kept), "more imbalance keeps a subset"
    assert set(long_tailed(labels, 100, seed=1, classes=10)) != set(kept)


def test_a_class_of_a_long_tail_keeps_one_image_at_least_and_no_more_than_it_has():
    labels = np.repeat([0, 1, 2, 3], [3, 20, 50, 5])
    assert np.bincount(labels[long_tailed(labels, 100, seed=0, classes=5)], minlength=5).tolist() == [3, 15, 5, 1, 0]
    assert long_tailed(np.zeros(4, np.int64), 10, seed=0, classes=1).tolist() == [0, 1, 2, 3]


def test_a_long_tailed_training_set_leaves_validation_and_test_as_they_are():
    whole, tailed = load("digits"), load("digits", shared={"imbalance": 10})
    counts = np.bincount(tailed.train.labels).tolist()
    most = np.bincount(whole.train.labels).max()
    known = np.bincount(whole.train.labels).tolist()
    assert counts == [min(own, int(most * 10 ** (-k / 9))) for k, own in enumerate(known)]
    assert set(tailed.train._rows) < set(whole.train._rows)
    for part in ("validation", "test"):
        np.testing.assert_array_equal(getattr(tailed, part)._rows, getattr(whole, part)._rows)
    assert "of 1,797 images (data.imbalance), 10 classes" in described(tailed)
    run = load_run(None, ["data.imbalance=10"])
    facts = facts_of(run)
    assert facts is not None
    np.testing.assert_array_equal(facts.labels, tailed.train.labels)


def test_long_tailed_labels_are_rarer_from_class_to_class():
    data = load("digits")
    known = data.train.labels
    chosen = data.labelled(Labels(per_class=40, imbalance=10), seed=3)
    assert np.bincount(known[chosen]).tolist() == [40, 30, 23, 18, 14, 11, 8, 6, 5, 4]  # 40 * 10^(-k/9), rounded down
    assert np.bincount(known[data.labelled(Labels(per_class=2, imbalance=100), seed=3)]).tolist() == [2, *[1] * 9]
    assert set(chosen.tolist()) < set(data.labelled(Labels(per_class=40), seed=3).tolist())
    tailed = data.labelled(Labels(fraction=0.5, imbalance=4), seed=3)
    halves = [round(count / 2) for count in np.bincount(known)]
    assert np.bincount(known[tailed]).tolist() == [int(half * 4 ** (-k / 9) + 1e-9) for k, half in enumerate(halves)]


@pytest.mark.parametrize("setting", [{"imbalance": 10}, {"validation_per_class": 2}])
def test_images_without_labels_have_no_classes_to_take_from(setting, tmp_path):
    write_noise(tmp_path, {".": 10})
    ((key, value),) = setting.items()
    with pytest.raises(ConfigError, match=rf"data\.{key}={value} needs labels, and these images have none; remove it"):
        load("folder", root=tmp_path, shared=setting)


def test_as_many_images_of_each_class_are_held_out_as_asked_for():
    data = load("digits", shared={"validation_per_class": 4})
    assert np.bincount(data.validation.labels).tolist() == [4] * 10
    assert len(data.train) == 1295 + 143 - 40
    assert not set(data.train._rows) & set(data.validation._rows)
    fewer = load("digits", shared={"validation_per_class": 3})
    assert set(fewer.validation._rows) < set(data.validation._rows)
    assert set(load("digits", seed=1, shared={"validation_per_class": 4}).validation._rows) != set(
        data.validation._rows
    )
    facts = facts_of(load_run(None, ["data.validation_per_class=4"]))
    assert facts is not None
    assert (facts.samples, facts.validation_labels) == (len(data.train), 40)


def test_a_sources_own_validation_images_are_drawn_from_too(tmp_path):
    write_noise(tmp_path, {f"{part}/{name}": 8 for part in ("train", "val", "test") for name in "ab"})
    shared = {"validation_per_class": 3}
    data = load("folder", root=tmp_path, shared=shared)
    assert np.bincount(data.validation.labels).tolist() == [3, 3]
    whole = load("folder", root=tmp_path)
    assert len(whole.validation) == 16
    assert set(data.validation._rows) < set(whole.validation._rows)
    np.testing.assert_array_equal(data.train._rows, whole.train._rows)
    folder = ["data=folder", f"data.root={tmp_path}"]
    facts = [facts_of(load_run(None, [*folder, *more])) for more in ([], ["data.validation_per_class=3"])]
    assert [each.validation_labels for each in facts] == [16, 6]
    with pytest.raises(
        ConfigError, match=r"data\.validation_per_class=9: validation has 8 labelled images of class 'a'$"
    ):
        load("folder", root=tmp_path, shared={"validation_per_class": 9})


def test_a_class_keeps_an_image_to_train_on(tmp_path):
    write_noise(tmp_path, {"train/a": 9, "train/b": 5, "test/a": 1, "test/b": 1})
    assert len(load("folder", root=tmp_path, shared={"validation_per_class": 4}).train) == 6
    said = (
        r"data\.validation_per_class=5: train has 5 labelled images of class 'b', of which some must be left to train"
    )
    with pytest.raises(ConfigError, match=said):
        load("folder", root=tmp_path, shared={"validation_per_class": 5})


def test_all_labels_that_a_file_gives_are_used_and_no_others(tmp_path):
    write_noise(tmp_path, {"train/pictures": 20, "test/pictures": 2})
    given = {"train/pictures/002.png": "a", "train/pictures/007.jpg": "b", "train/pictures/011.jpg": "a"}
    given |= {"test/pictures/000.png": "a", "test/pictures/001.jpg": "b"}
    (tmp_path / "labels.csv").write_text("".join(f"{name},{label}\n" for name, label in given.items()))
    data = load("folder", root=tmp_path, labels=str(tmp_path / "labels.csv"), shared={"validation": 0})
    assert len(data.train) == 20
    chosen = data.labelled(Labels(per_class=None, fraction=1), seed=5)
    assert torch.equal(chosen, data.labelled(Labels(fraction=1), seed=0)), "they are given, not drawn"
    assert data.train.labels[chosen].tolist() == [data.train.labels[i] for i in np.flatnonzero(data.train.labels >= 0)]
    assert len(chosen) == 3
    said = (
        "labels.per_class=40: train has 1 images of class 'b' with a label (17 images have none); ask for no more, or"
    )
    with pytest.raises(ConfigError, match=re.escape(f"{said} for all labels: labels.fraction=1")):
        data.labelled(Labels(), seed=0)


def test_labels_are_needed_to_choose_by_them(tmp_path):
    write_noise(tmp_path, {".": 10})
    with pytest.raises(ConfigError, match="no labels"):
        load("folder", root=tmp_path).labelled(Labels(per_class=1), seed=0)


# --- orders ---


@settings(deadline=None)
@given(
    share=st.integers(1, 9),
    world=st.integers(1, 5),
    rest=st.integers(0, 200),
    seed=st.integers(0, 2**60),
    epoch=st.integers(0, 10**6),
)
def test_workers_together_see_the_batches_of_one_process(share, world, rest, seed, epoch):
    batch_size, samples = share * world, share * world + rest
    alone = epoch_order(samples, batch_size, seed, epoch)
    assert len(alone) == samples // batch_size
    together = [epoch_order(samples, batch_size, seed, epoch, rank, world) for rank in range(world)]
    for i, batch in enumerate(alone):
        assert batch.dtype == torch.int64
        assert torch.equal(torch.cat([order[i] for order in together]), batch)
    seen = torch.cat(alone).tolist()
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(samples))


def test_an_epochs_order_is_its_own_and_has_no_memory():
    orders = {(s, e): torch.cat(epoch_order(64, 8, s, e)).tolist() for s in range(3) for e in range(3)}
    assert len(set(map(tuple, orders.values()))) == 9
    torch.manual_seed(0)
    assert torch.cat(epoch_order(64, 8, 2, 1)).tolist() == orders[2, 1]
    assert orders[0, 0][:8] != list(range(8))


@settings(deadline=None)
@given(
    samples=st.integers(1, 40),
    share=st.integers(1, 20),
    world=st.integers(1, 4),
    step=st.integers(0, 10**7),
    seed=st.integers(0, 2**60),
)
def test_labelled_batches_go_round_and_round(samples, share, world, step, seed):
    batch_size = share * world
    indices = 100 + 3 * torch.arange(samples)
    several = [labelled_order(indices, batch_size, seed, step + i) for i in range(samples)]
    seen = torch.cat(several).tolist()  # samples * batch_size images, whole rounds of them if begun at a round
    counts = np.bincount((np.array(seen) - 100) // 3, minlength=samples)
    start = step * batch_size % samples
    assert counts.sum() == samples * batch_size
    assert abs(counts - batch_size).max() <= (0 if start == 0 else 1)
    shares = [labelled_order(indices, batch_size, seed, step, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat(shares), several[0])


def test_orders_that_cannot_be():
    with pytest.raises(ConfigError, match="batch_size=9 is larger than the 8 training images"):
        epoch_order(8, 9, 0, 0)
    for order in (
        lambda: epoch_order(80, 9, 0, 0, 0, 2),
        lambda: labelled_order(torch.arange(5), 1, 0, 0, 0, 2),
    ):
        with pytest.raises(ConfigError, match="cannot be shared by 2 workers"):
            order()
    with pytest.raises(ConfigError, match="no labelled image"):
        labelled_order(torch.arange(0), 4, 0, 0)


def test_batches_hold_pixels_and_nothing_else():
    data = load("digits")
    batch = next(iter(data.train.batches([torch.tensor([3, 1, 3])])))
    assert type(batch) is torch.Tensor
    assert batch.dtype == torch.uint8
    assert batch.shape == (3, 1, 8, 8)
    assert torch.equal(batch[0], batch[2])


def test_images_in_memory_are_faster_than_any_network_eats_them():
    pixels = np.zeros(20_000 * 3 * 32 * 32, np.uint8)
    images = Images(Stored(pixels, np.full((20_000, 2), 32), 3), np.arange(20_000), None)
    order = epoch_order(len(images), 256, 0, 0)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in images.batches(order):
            pass
        seconds.append(time.perf_counter() - start)
    assert len(order) * 256 / min(seconds) > 200_000  # images a second; about 1,900,000 measured on one core
