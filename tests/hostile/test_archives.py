"""Hostile archives: each is refused in one sentence."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from eagleray.config.registry import find
from eagleray.config.sections import DataSettings
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.visible import visible
from eagleray.data.archive import open_archive
from hostile.archives import CIFAR, CLASSES, SOURCES, good_cifar, labels, pixels
from hostile.watched import watched

CASES = [(source, kind) for source, (_, kinds) in SOURCES.items() for kind in kinds]


def test_all_of_the_audit_are_here():
    assert len(CASES) == 70


def read(source: str, root: Path, cache: Path):
    dataset = find("data", source).load()(source, find("data", source).Config(root=root))
    return open_archive(dataset, DataSettings(cache=cache))


@pytest.mark.parametrize("source", SOURCES)
def test_the_good_files_are_read(tmp_path: Path, source: str):
    SOURCES[source][0](tmp_path / "root")
    assert read(source, tmp_path / "root", tmp_path / "cache").about.class_names


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("source", "kind"), CASES)
def test_an_archive_is_refused(tmp_path: Path, source: str, kind: str):
    root, cache = tmp_path / "root", tmp_path / "cache"
    good, kinds = SOURCES[source]
    good(root)
    kinds[kind](root)
    with watched(cache) as result, pytest.raises(ConfigError) as caught:
        read(source, root, cache)
    result.check()
    assert not (root / "canary").exists()
    assert "\n" not in visible(str(caught.value))
    assert "download" in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_any_python_pickles_is_read(tmp_path: Path, protocol: int):
    """Python 2's own pickles are in tests/datasets/test_datasets.py."""
    good_cifar(tmp_path, protocol)
    other = {
        "data": np.asfortranarray(pixels()),
        "labels": np.array(labels()),
        "batch_label": b"1 of 5",
        "y": None,
    }
    (tmp_path / CIFAR / "data_batch_2").write_bytes(pickle.dumps(other, protocol))
    dataset = find("data", "cifar10").load()("cifar10", find("data", "cifar10").Config(root=tmp_path))
    train = dataset.parts()["train"]
    np.testing.assert_array_equal(train.images, np.concatenate([pixels()] * 5).reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(train.labels, labels() * 5)
    assert dataset.class_names() == tuple(CLASSES)
