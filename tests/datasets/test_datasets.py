"""The sources of images, held against torchvision's and scikit-learn's own readers."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision
from pydantic import ValidationError
from sklearn.datasets import load_digits

from eagleray.config.registry import declared, find
from eagleray.config.sections import DataSettings
from eagleray.contracts.dataset import Dataset
from eagleray.contracts.errors import ConfigError


def source(name: str, **config) -> Dataset:
    declaration = find("data", name)
    return declaration.load()(name, declaration.Config(**config))


# --- what all of them promise ---


@pytest.mark.slow
def test_sources_are_read_without_torch():
    code = (
        "import sys; import eagleray.data.workers; from eagleray.config.registry import declared;"
        "[d.load() for d in declared('data').values()];"
        "sys.exit(bool({'torch', 'torchvision', 'ray', 'mlflow', 'sklearn'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(declared("data")))
def test_config_explains_itself_and_leaves_the_shared_names_alone(name):
    config = declared("data")[name].Config
    assert config.model_config["extra"] == "forbid"
    assert config.model_config["frozen"]
    assert all(field.description for field in config.model_fields.values())
    assert not set(config.model_fields) & set(DataSettings.model_fields)
    assert config.model_json_schema()["type"] == "object"


def test_all_sources_of_the_issue_are_there():
    names = {"digits", "letters", "mnist", "fashion_mnist", "cifar10", "cifar100", "stl10", "folder"}
    assert set(declared("data")) == names


def test_settings_read_sizes_as_people_write_them():
    assert DataSettings(memory_limit="1.5 GiB").memory_limit == 3 * 2**29
    assert DataSettings(memory_limit=1000).memory_limit == 1000
    for wrong in ({"memory_limit": "much"}, {"validation": 0.9}, {"workers": -1}, {"worker": 1}):
        with pytest.raises(ValidationError):
            DataSettings(**wrong)


def test_paths_are_made_absolute_where_they_are_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # Ray gives a trial another working directory
    monkeypatch.setenv("HOME", "/home/someone")
    assert find("data", "mnist").Config().model_dump(mode="json")["root"] == str(tmp_path / "data")
    assert find("data", "folder").Config(root="~/images").model_dump()["root"] == Path("/home/someone/images")
    assert DataSettings(cache=Path("here")).cache == tmp_path / "here"


# --- digits ---


def test_digits_are_scikit_learns():
    part = source("digits").parts()["train"]
    reference = load_digits()
    assert np.asarray(part.images).shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(np.asarray(part.images)[:, 0], np.rint(reference.images * 255 / 16))
    np.testing.assert_array_equal(part.labels, reference.target)


# --- mnist ---


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder: Path, ending: str = "") -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 20)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", random.integers(0, 10, count).astype(np.uint8))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_as_torchvision_reads_it(tmp_path, name, packed):
    kind = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    write_mnist(tmp_path / kind / "raw")
    root = tmp_path
    if packed:  # as Debian's dataset-fashion-mnist has them: gzipped, right in the folder
        root = tmp_path / "packed"
        write_mnist(root, ".gz")
    dataset = source(name, root=root)
    for part, train in (("train", True), ("test", False)):
        reference = getattr(torchvision.datasets, kind)(tmp_path, train=train)
        ours = dataset.parts()[part]
        np.testing.assert_array_equal(np.asarray(ours.images)[:, 0], reference.data.numpy())
        np.testing.assert_array_equal(ours.labels, reference.targets.numpy())
    assert dataset.class_names() == tuple(each.partition(" - ")[0] for each in reference.classes)
    assert len(dataset.files()) == 4


def test_damaged_idx_files_are_refused_by_name(tmp_path):
    write_mnist(tmp_path, ".gz")
    images = tmp_path / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    raw = gzip.decompress(whole)
    for damage in (
        whole[:-100],
        b"no gzip",
        gzip.compress(raw[:-1]),
        gzip.compress(b"\0"),
        gzip.compress(b"\1" + raw),
    ):
        images.write_bytes(damage)
        with pytest.raises(ConfigError, match=r"train-images-idx3-ubyte\.gz .*download it again"):
            source("mnist", root=tmp_path).parts()
    write_idx(images, np.zeros((7, 28, 28), np.uint8))
    with pytest.raises(ConfigError, match="do not match"):
        source("mnist", root=tmp_path).parts()


def test_missing_files_name_the_remedy(tmp_path):
    for name, file in (("mnist", "train-images"), ("cifar10", "data_batch_1"), ("stl10", "train_X.bin")):
        with pytest.raises(ConfigError, match=rf"{name} needs {file}.*data\.root=.*data\.download=true"):
            source(name, root=tmp_path).files()


def test_download_only_if_asked_and_only_what_is_missing(tmp_path, monkeypatch):
    asked = []

    class Fake:
        def __init__(self, root, download):
            asked.append(Path(root))
            write_mnist(Path(root) / "MNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "MNIST", Fake)
    source("mnist", root=tmp_path).fetch()
    assert asked == []
    dataset = source("mnist", root=tmp_path, download=True)
    dataset.fetch()
    dataset.fetch()
    assert asked == [tmp_path]
    assert len(dataset.parts()["train"]) == 30


def test_a_failed_download_is_a_config_error(tmp_path, monkeypatch):
    def offline(root, download):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(ConfigError, match=r"CIFAR10 cannot be downloaded .*no network"):
        source("cifar10", root=tmp_path, download=True).fetch()


# --- cifar ---


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes as Python 2 wrote its strings, and names numpy's modules as they were called then."""

    def save_bytes(self, text):
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}  # noqa: RUF012


def write_pickle(path: Path, content: dict) -> None:
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump({key.encode(): value for key, value in content.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def write_cifar(root: Path, name: str) -> list[str]:
    """Six images a file; returns the files' names, the one of the test part last."""
    random = np.random.default_rng(0)
    if name == "cifar10":
        folder, files, meta = "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "batches.meta"
        files, labels = [*files, "test_batch"], "labels"
    else:
        folder, files, meta, labels = "cifar-100-python", ["train", "test"], "meta", "fine_labels"
    for file in files:
        batch = {"data": random.integers(0, 256, (6, 3072), np.uint8), "coarse_labels": [0] * 6}
        write_pickle(root / folder / file, {**batch, labels: random.integers(0, 10, 6).tolist()})
    names = [b"cat", b"dog", b"emu"]
    write_pickle(root / folder / meta, {"label_names": names, "fine_label_names": names})
    return files


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_is_read_as_torchvision_reads_it(tmp_path, monkeypatch, name, kind):
    files = write_cifar(tmp_path, name)
    reader = getattr(torchvision.datasets, kind)
    monkeypatch.setattr(reader, "train_list", [[file, None] for file in files[:-1]])
    monkeypatch.setattr(reader, "test_list", [[files[-1], None]])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": None})
    for root in (tmp_path, tmp_path / reader.base_folder):
        dataset = source(name, root=root)
        for part, train in (("train", True), ("test", False)):
            reference = reader(tmp_path, train=train)
            ours = dataset.parts()[part]
            np.testing.assert_array_equal(np.asarray(ours.images).transpose(0, 2, 3, 1), reference.data)
            np.testing.assert_array_equal(ours.labels, reference.targets)
        assert dataset.class_names() == ("cat", "dog", "emu")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    write_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Bomb(tmp_path / "gone off")))
    with pytest.raises(ConfigError, match=r"data_batch_1 cannot be read: it asks for posix\.mkdir"):
        source("cifar10", root=tmp_path).parts()
    assert not (tmp_path / "gone off").exists()


def test_damaged_batches_are_refused(tmp_path):
    write_cifar(tmp_path, "cifar10")
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    whole = batch.read_bytes()
    for damage in (
        whole[:100],
        b"",
        pickle.dumps([1]),
        pickle.dumps({"data": [1, 2], "labels": [1]}),
        pickle.dumps({}),
    ):
        batch.write_bytes(damage)
        with pytest.raises(ConfigError, match=r"data_batch_1 .*download it again"):
            source("cifar10", root=tmp_path).parts()


# --- stl10 ---


def write_stl10(folder: Path) -> None:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 5), ("test", 4), ("unlabeled", 7)):
        random.integers(0, 256, (count, 3, 96, 96), np.uint8).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            random.integers(1, 11, count).astype(np.uint8).tofile(folder / f"{part}_y.bin")


def test_stl10_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    write_stl10(tmp_path / "stl10_binary")
    reader = torchvision.datasets.STL10
    names = ["train_X.bin", "train_y.bin", "unlabeled_X.bin"]
    monkeypatch.setattr(reader, "train_list", [[name, None] for name in names])
    monkeypatch.setattr(reader, "test_list", [["test_X.bin", None], ["test_y.bin", None]])
    parts = source("stl10", root=tmp_path).parts()
    for ours, theirs in (("train", "train"), ("test", "test"), ("unlabelled", "unlabeled")):
        reference = reader(str(tmp_path), split=theirs)
        np.testing.assert_array_equal(parts[ours].images, reference.data)
        np.testing.assert_array_equal(parts[ours].labels, reference.labels)
    assert set(source("stl10", root=tmp_path / "stl10_binary", unlabelled=False).parts()) == {"train", "test"}


def test_damaged_stl10_is_refused(tmp_path):
    write_stl10(tmp_path)
    (tmp_path / "test_y.bin").write_bytes(b"\x01\x02\x00\x03")
    with pytest.raises(ConfigError, match="do not match"):
        source("stl10", root=tmp_path).parts()
    write_stl10(tmp_path)
    (tmp_path / "unlabeled_X.bin").write_bytes(b"12345")
    with pytest.raises(ConfigError, match=r"unlabeled_X\.bin is damaged"):
        source("stl10", root=tmp_path).parts()
