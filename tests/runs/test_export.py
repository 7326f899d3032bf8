"""Exported encoders: loaded by others without Eagleray, they give the features that evaluation sees."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from eagleray import load_encoder
from eagleray.augment.copies import mean_over_copies
from eagleray.config.registry import find
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.runs.export import formats
from eagleray.runs.export.encoder import Build, ExportedEncoder
from eagleray.runs.export.formats import FORMATS, write

NETWORKS: dict[str, tuple[str, int, int, dict[str, Any]]] = {  # encoder, image size, channels, settings
    "convnet": ("convnet", 24, 1, {"width": 8}),
    "cells": ("convnet", 32, 3, {"width": 8, "grid": 2, "last": 2}),
    "resnet": ("resnet18", 32, 3, {}),
    "large resnet": ("resnet18", 96, 3, {"stem": "imagenet"}),
    "vit": ("vit_tiny", 32, 3, {"depth": 1, "dim": 32}),
    "class token": ("vit_tiny", 32, 1, {"depth": 1, "dim": 32, "pool": "class"}),
    "registers": ("vit_small_patch14_reg4_dinov2", 28, 3, {"depth": 1, "dim": 32}),
    "convolutions of timm": ("test_efficientnet", 96, 3, {}),
    "layer norms": ("test_convnext", 32, 3, {}),
    "constants": ("test_vit_relpos", 32, 3, {}),  # positions that no state_dict holds
}
MIRRORED = {"convnet", "registers"}  # whose features are means over an image and its mirror image
SHIFTED = {"convnet", "resnet", "large resnet"}  # and over copies of them moved by a pixel
ENCODED = {"convnet": 32}  # the side of images at which some are evaluated, larger than the one they are built for
OF_TIMM = {"large resnet", "vit", "class token", "registers", "convolutions of timm", "constants"}
EXPORTED = {
    "safetensors": list(NETWORKS),
    "torchscript": ["convnet", "resnet", "vit", "layer norms"],
    "onnx": ["convnet", "cells", "vit"],
    "timm": [name for name in NETWORKS if name in OF_TIMM],
}
# What a clean environment lacks; the loader's own library stays, with what that one imports.
ABSENT = {
    "safetensors": ["eagleray", "eagleray_methods", "safetensors", "timm", "torchvision", "pydantic"],
    "torchscript": ["eagleray", "eagleray_methods", "safetensors", "timm", "torchvision", "pydantic"],
    "onnx": ["eagleray", "eagleray_methods", "safetensors", "timm", "torchvision", "pydantic", "torch"],
    "timm": ["eagleray", "eagleray_methods", "pydantic"],
}
FACTS = {"run": "abc", "eagleray": "0.1"}
CLEAN = """
import json, sys
absent, folders, paths = json.loads(sys.argv[1])
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is not here", name=name)
sys.meta_path.insert(0, Blocker())
import runpy
import numpy as np
for folder in folders:
    loader = runpy.run_path(folder + "/load_encoder.py")
    images = loader["read"](paths)
    encoder = loader["load"]()
    features = loader["encode"](encoder, paths)
    one = loader["encode"](encoder, paths[:1])
    np.savez(folder + "/found.npz", images=np.asarray(images), features=np.asarray(features), one=np.asarray(one))
assert not {name.partition(".")[0] for name in sys.modules} & set(absent)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return image files of several shapes and kinds."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    root = Path(__file__).parents[2] / "docs/images/quickstart.png"
    smooth = Image.fromarray(draw.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize(
        (310, 207), Image.Resampling.BICUBIC
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = draw.integers(0, 65536, (50, 70), dtype=np.uint16)
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "photo.jpg": (smooth, {}),
        "turned.jpg": (smooth, {"exif": turned}),
        "panorama.png": (smooth.resize((400, 40)), {}),
        "small.png": (smooth.resize((11, 17)), {}),
        "odd.png": (smooth.resize((33, 97)), {}),
        "grey.jpg": (smooth.convert("L"), {}),
        "palette.gif": (smooth.convert("P"), {}),
        "deep.png": (Image.frombytes("I;16", (70, 50), deep.tobytes()), {}),
        "clear.webp": (smooth.convert("RGBA").rotate(30), {"lossless": True}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [str(root), *(str(folder / name) for name in images)]


def made(name: str) -> ExportedEncoder:
    """Return an encoder whose norms have seen images."""
    kind, size, channels, settings = NETWORKS[name]
    torch.manual_seed(0)
    declaration = find("encoder", kind).load()
    encoder: Encoder = declaration(kind, declaration.Config(**settings), image_size=size, channels=channels)
    with torch.no_grad():
        encoder.train()(3 * torch.randn(8, channels, size, size) + 1)
    mean, std = (0.4,) * channels, (0.3,) * channels
    facts = DataInfo(size, channels, 10, None, mean=mean, std=std, stored_size=2 * size)
    facts = replace(facts, encoded_size=ENCODED.get(name), mirrored=name in MIRRORED, shift=int(name in SHIFTED))
    return ExportedEncoder(encoder, Build.of(encoder, facts)).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, photos: list[str]) -> Callable[[str], Path]:
    """Return a format's exports, once loaded in a clean environment: to start it takes longer than to load them all."""

    @cache
    def of(form: str) -> Path:
        place = tmp_path_factory.mktemp("exports")
        for name in EXPORTED[form]:
            write(form, made(name), place / name, FACTS, "a card")
        argument = json.dumps([ABSENT[form], [str(place / name) for name in EXPORTED[form]], photos])
        command = [sys.executable, "-I", "-W", "error", "-c", CLEAN, argument]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=place)
        assert done.returncode == 0, done.stderr[-3000:]
        return place

    return of


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(("form", "name"), [(form, name) for form, names in EXPORTED.items() for name in names])
def test_others_get_the_features_of_evaluation_without_eagleray(
    form: str, name: str, exported: Callable[[str], Path], photos: list[str]
):
    encoder = made(name)
    with torch.no_grad():
        images = encoder.read(photos)
        features = encoder(images)
        if name in MIRRORED:
            shift = encoder.build.shift
            both = [mean_over_copies(encoder.encoder, each, False, shift) for each in (images, images.flip(3))]
            torch.testing.assert_close(features, (both[0] + both[1]) / 2)
    assert images.shape[2] == ENCODED.get(name, NETWORKS[name][1])
    with np.load(exported(form) / name / "found.npz") as found:
        assert found["features"].shape == (len(photos), encoder.dim)
        np.testing.assert_allclose(found["images"], images, rtol=0, atol=1e-4)
        scale = max(1, float(features.abs().max()))
        np.testing.assert_allclose(found["features"] / scale, features / scale, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found["one"] / scale, features[:1] / scale, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_file_of_a_timm_network_is_one_that_timm_itself_loads(exported: Callable[[str], Path], photos: list[str]):
    encoder = made("class token")
    with torch.no_grad():
        wanted = encoder(images := encoder.read(photos))
    folder = exported("timm") / "class token"
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(loaded(images), wanted, rtol=1e-4, atol=1e-4)
    assert loaded.pretrained_cfg["mean"] == [0.4]


def refused(name: str, form: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        write(form, made(name), folder / "out", FACTS, "")
    assert list(folder.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_networks_that_timm_does_not_have_are_refused(tmp_path: Path):
    for name in ("convnet", "resnet", "layer norms"):  # a small stem, as timm has none
        assert "timm has no network like this" in refused(name, "timm", tmp_path)


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused("convnet", "onnx", tmp_path).endswith(
        "needs onnx, onnxscript, onnxruntime: pip install 'eagleray[export]'"
    )


class Restless(torch.nn.Module):
    """A network that computes with the number of images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : len(images)]


def test_a_network_that_torch_cannot_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoder = made("convnet")
    monkeypatch.setattr(formats, "_CODES", {})
    monkeypatch.setattr(encoder.encoder, "forward", Restless().forward)
    with pytest.raises(ConfigError, match=r"cannot be exported: torch\.export cannot record it"):
        write("safetensors", encoder, tmp_path, FACTS, "")
    assert list(tmp_path.iterdir()) == []


def test_what_computes_other_features_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoder = made("vit")
    plan = encoder.encoder.as_timm()
    assert plan is not None
    monkeypatch.setattr(encoder.encoder, "as_timm", lambda: (plan[0], {**plan[1], "global_pool": "token"}, plan[2]))
    with pytest.raises(ConfigError, match="read again, it computes other features"):
        write("timm", encoder, tmp_path, FACTS, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_have_the_modes_of_their_neighbours(mask: int, tmp_path: Path):
    """Everyone who may read the folder may read the weights."""
    before = os.umask(mask)
    try:
        (tmp_path / "neighbour").write_text("")
        files = write("safetensors", made("convnet"), tmp_path, FACTS, "a card")
        files += write("timm", made("vit"), tmp_path / "timm", FACTS, "a card")
    finally:
        os.umask(before)
    mode = stat.S_IMODE((tmp_path / "neighbour").stat().st_mode)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {path.name: mode for path in files}
    assert len(files) == 7


@pytest.mark.slow
def test_the_public_loader_rebuilds_the_encoder_itself(tmp_path: Path):
    """Its layers can be trained further, and constants of the graph are none of its weights."""
    for name in ("vit", "constants"):
        encoder = made(name)
        write("safetensors", encoder, tmp_path / name, FACTS, "")
        again = load_encoder(tmp_path / name)
        assert type(again.encoder) is type(encoder.encoder)
        images = torch.randn(2, *(again.build.channels, again.build.image_size, again.build.image_size))
        with torch.no_grad():
            torch.testing.assert_close(again(images), encoder(images))


def test_every_format_has_an_export_that_is_tested():
    assert set(EXPORTED) == set(ABSENT) == set(FORMATS)
