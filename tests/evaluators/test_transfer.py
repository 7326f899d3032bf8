"""Transfer to other images: what is fitted and measured where, and what is refused before anything starts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eagleray.config import Sweep, load_run, read_run, validated
from eagleray.config.metrics import measured_by
from eagleray.config.schema import run_schema
from eagleray.contracts.errors import ConfigError
from eagleray.runs.assemble import Assembly, assemble
from eagleray.runs.preflight import check_run, check_sweep, run_paths

RUN = ["encoder.width=8", "batch_size=40", "threads=1", "device=cpu", "precision=fp32", "data.limit=300"]
ON = [*RUN, "evaluate.transfer.when=end"]
TO = "evaluate.transfer.data"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of colour images of two classes, and beside it one without classes, `flat`."""
    draw = np.random.default_rng(0)
    for number in range(120):
        image = Image.fromarray(draw.integers(0, 100 + 100 * (number % 2), (10, 12, 3), dtype=np.uint8))
        for place in (tmp_path / "photos" / f"class{number % 2}", tmp_path / "flat"):
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{number}.png")
    return tmp_path / "photos"


def measured(built: Assembly) -> dict[str, float]:
    return built.evaluation(built.method, built.autocast, final=True)


def test_transfer_to_the_same_images_is_the_probe_and_knn_of_the_run():
    found = measured(assemble(load_run(None, [*ON, f"{TO}=digits", f"{TO}.limit=300"])))
    for where in ("", "test_"):
        assert found[f"{where}transfer_knn"] == found[f"{where}knn"]
        assert found[f"{where}transfer_linear"] == found[f"{where}linear"]


def test_grey_images_are_shown_to_a_network_of_colour_images_and_measured_as_by_scikit_learn(photos: Path):
    run = load_run(None, [*RUN, "data=folder", f"data.root={photos}", f"data.cache={photos.parent}", f"{TO}=digits"])
    built = assemble(measured_by(run, ["transfer"], []))
    found, other = measured(built), built.evaluation.others[0][1]
    assert set(found) == {"transfer_linear", "transfer_knn", "test_transfer_linear", "test_transfer_knn"}
    assert built.method.data.channels == 3
    assert other.test is not None
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (built.data.info.mean, built.data.info.std))
    features, labels = [], []
    for part in (other.train, other.test):
        (images,) = part.batches([torch.arange(len(part))])
        assert isinstance(images, torch.Tensor)
        size = built.method.data.image_size
        large = torch.nn.functional.interpolate(images / 255, size=(size, size), mode="bilinear")  # enlarged
        with torch.no_grad():
            features.append(built.method.eval().encode((large.expand(-1, 3, -1, -1) - mean) / std).numpy())
        labels.append(part.labels)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, C=10)).fit(features[0], labels[0])
    assert found["test_transfer_linear"] == pytest.approx(probe.score(features[1], labels[1]), abs=0.03)
    assert found["test_transfer_linear"] > 0.7


def test_a_run_without_labels_transfers_to_images_with_some(photos: Path):
    flat = ["data=folder", f"data.root={photos.parent / 'flat'}", f"data.cache={photos.parent}"]
    run = load_run(None, [*ON, *flat, f"{TO}=folder", f"{TO}.root={photos}", f"{TO}.cache={photos.parent}"])
    check_run(run)
    found = measured(assemble(run))
    assert found["test_transfer_linear"] == 1
    assert "linear" not in found
    assert (f"{TO}.root", photos) in list(run_paths(run))


def test_a_run_file_gives_its_other_images_back(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(photos.parent)
    run = load_run(None, [*RUN, "data=folder", "data.root=flat"])
    asked = measured_by(run, ["transfer"], [f"{TO}.name=folder", f"{TO}.root=photos"])
    assert asked.file()["evaluate"]["transfer"]["data"]["root"] == str(photos)
    assert read_run(json.loads(json.dumps(asked.file()))) == asked
    data = run_schema()["$defs"]["Evaluate"]["properties"]["transfer"]["properties"]["data"]
    assert {"$ref": "#/$defs/DataChoice"} in data["anyOf"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], f"{TO} names no images; set {TO}.name and its settings, as those of data"),
        ([f"{TO}=folder", f"{TO}.root=/nowhere"], f"{TO}.root=/nowhere does not exist"),
        ([f"{TO}=foldr"], f"{TO}: there is no dataset 'foldr'; did you mean folder? (there are: "),
        ([f"{TO}=digits", f"{TO}.valdation=0"], f"unknown key {TO}.valdation; did you mean {TO}.validation?"),
        ([f"{TO}=digits", f"{TO}.validation=2"], f"{TO}.validation=2 is out of range (allowed: 0 to 0.5)"),
        ([f"{TO}=digits", f"{TO}.validation=0"], f"{TO}.validation=0 leaves no images to measure on; set it to 0.1"),
        ([f"{TO}=folder", f"{TO}.root=flat"], f"{TO}=folder: these images have no labels to measure by; name others"),
    ],
)
def test_other_images_are_checked_before_anything_starts(
    settings: list[str], said: str, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(photos.parent)
    with pytest.raises(ConfigError) as refused:
        check_run(load_run(None, [*ON, *settings]))
    assert str(refused.value).startswith(said)


def test_a_sweep_may_vary_the_other_images_and_each_is_checked(photos: Path):
    run = {"evaluate": {"transfer": {"when": "end", "data": {"name": "folder", "root": str(photos)}}}}
    vary = {f"{TO}.root": [str(photos), "/nowhere"]}
    tree = {"name": "s", "run": run, "vary": vary, "search": "grid", "metric": "transfer_linear"}
    with pytest.raises(ConfigError, match=rf"{TO}\.root=/nowhere does not exist"):
        check_sweep(validated(Sweep, tree))
    several = validated(Sweep, {**tree, "vary": {f"{TO}.limit": [20, 40]}})
    assert [run.evaluate.others["transfer"].settings.limit for run in check_sweep(several)] == [20, 40]


def test_colour_images_are_not_shown_to_a_network_of_grey_ones(photos: Path):
    run = load_run(None, [*ON, f"{TO}=folder", f"{TO}.root={photos}", f"{TO}.cache={photos.parent}"])
    with pytest.raises(ConfigError, match=f"{TO}=folder has colours, .*: set {TO}.channels=grey"):
        assemble(run)
    grey = [f"{TO}=folder", f"{TO}.root={photos}", f"{TO}.channels=grey", f"{TO}.cache={photos.parent}"]
    assert measured(assemble(load_run(None, [*ON, *grey])))["transfer_linear"] > 0.9
