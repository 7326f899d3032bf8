"""Features of a folder: those that evaluation sees, of every image that can be read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from eagleray.augment.copies import mean_over_copies
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.data.decode import decode_all
from eagleray.data.images import batched
from eagleray.runs import embed as module
from eagleray.runs.embed import embed
from method_cases import small

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return images of several shapes at several depths, with other files among them."""
    draw = np.random.default_rng(0)
    for number, shape in enumerate([(20, 30), (40, 12), (9, 9), (8, 8), (100, 21), (16, 16), (31, 64)]):
        place = tmp_path / "images" / ("", "a", "a/b")[number % 3] / f"{number}.{('png', 'JPG', 'webp')[number % 3]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(place)
    for stray in ("Thumbs.db", "a/README.txt", "labels.csv", ".hidden.png"):
        (tmp_path / "images" / stray).write_text("no image")
    return tmp_path / "images"


@pytest.fixture(scope="module")
def method() -> Method:
    return small("simclr").float().eval()


def parquet(path: Path) -> tuple[list[str], np.ndarray, dict[str, Any]]:
    table = pq.read_table(path)
    assert [str(field.type) for field in table.schema] == ["string", f"fixed_size_list<element: float>[{_dim(table)}]"]
    facts = json.loads(table.schema.metadata[b"eagleray"])
    return table["path"].to_pylist(), np.array(table["features"].to_pylist(), np.float32), facts


def _dim(table: Any) -> int:
    return table.schema.field("features").type.list_size


def npz(path: Path) -> tuple[list[str], np.ndarray, dict[str, Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["paths"].tolist(), arrays["features"], json.loads(str(arrays["facts"]))


@pytest.mark.parametrize(("ending", "read", "size"), [("parquet", parquet, None), ("npz", npz, None), ("npz", npz, 12)])
def test_features_are_those_of_the_evaluation_view(
    ending: str, read: Any, size: int | None, folder: Path, method: Method, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setattr(method, "data", replace(method.data, encoded_size=size, shift=0 if size is None else 1))
    told: list[tuple[int, int]] = []
    out = tmp_path / f"features.{ending}"
    done = embed(
        method, folder, out, {"run": "abc"}, device=CPU, batch_size=3, progress=lambda *each: told.append(each)
    )
    assert (done.images, done.stray, done.bad) == (7, 4, [])
    assert told == [(3, 7), (6, 7), (7, 7)]
    paths, features, facts = read(out)
    assert paths == sorted(["0.png", "a/1.JPG", "a/b/2.webp", "3.png", "a/4.JPG", "a/b/5.webp", "6.png"])
    info = method.data
    images = batched(decode_all([str(folder / path) for path in paths], info.stored_size, info.channels))
    side = size or info.image_size
    with torch.no_grad():
        view = module.evaluation_view(images, side, info.mean, info.std)
        wanted = mean_over_copies(method.encode, view, mirrored=False, shift=0 if size is None else 1)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, wanted.numpy(), rtol=1e-5, atol=1e-5)
    known = {"run": "abc", "mean": list(info.mean), "std": list(info.std), "image_size": side}
    assert known.items() <= facts.items()
    assert [path.name for path in tmp_path.iterdir() if path != folder] == [out.name]


def test_damaged_images_are_named_and_nothing_is_written(folder: Path, method: Method, tmp_path: Path):
    (folder / "a/broken.jpg").write_bytes((folder / "a/1.JPG").read_bytes()[:200])
    (folder / "text.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"broken\.jpg \(.*text\.png \(not an image\); .* with --skip-bad"):
        embed(method, folder, tmp_path / "out.parquet", {}, device=CPU)
    assert list(tmp_path.iterdir()) == [folder]
    done = embed(method, folder, tmp_path / "out.parquet", {}, device=CPU, batch_size=2, skip_bad=True)
    assert (done.images, done.bad) == (7, ["a/broken.jpg", "text.png"])
    assert len(parquet(tmp_path / "out.parquet")[0]) == 7


def test_a_folder_without_readable_images_is_refused(method: Method, tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/README.txt").write_text("")
    out = tmp_path / "out.npz"
    with pytest.raises(ConfigError, match=r"images contains no images: README\.txt is not named like one"):
        embed(method, tmp_path / "images", out, {}, device=CPU)
    (tmp_path / "images/a.png").write_text("no image")
    with pytest.raises(ConfigError, match="none can be read as an image"):
        embed(method, tmp_path / "images", out, {}, device=CPU, skip_bad=True)
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        embed(method, tmp_path / "nowhere", out, {}, device=CPU)
    with pytest.raises(ConfigError, match=r"written as \.parquet or \.npz"):
        embed(method, tmp_path / "images", tmp_path / "out.csv", {}, device=CPU)
    assert not list(tmp_path.glob("*out*"))


def test_memory_does_not_grow_with_the_folder(folder: Path, method: Method, tmp_path: Path, monkeypatch: Any):
    """A few batches are decoded ahead, however many there are."""
    for number in range(60):
        shutil.copy(folder / "3.png", folder / f"more{number}.png")
    decoded, encoded, most = [0], [0], [0]
    decode, view = module.decode, module.evaluation_view

    def counted(*arguments: Any) -> Any:
        decoded[0] += 1
        most[0] = max(most[0], decoded[0] - encoded[0])
        return decode(*arguments)

    def seen(images: Any, *arguments: Any) -> Any:
        result = view(images, *arguments)
        encoded[0] += len(images)
        return result

    monkeypatch.setattr(module, "decode", counted)
    monkeypatch.setattr(module, "evaluation_view", seen)
    embed(method, folder, tmp_path / "out.parquet", {}, device=CPU, batch_size=4)
    assert decoded[0] == encoded[0] == 67
    assert most[0] <= 4 * (module.AHEAD + 2)
