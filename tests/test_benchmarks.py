"""The benchmarks still fit the code they measure; their results are not tested."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional as F

from eagleray.blocks.optimizers import make_optimizer
from eagleray.config import load_run
from eagleray.config.plugin_files import import_file
from eagleray.config.registry import declared
from eagleray.loop import train
from method_cases import METHODS, NOW, batch_of, small

FILES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))
SCRIPTS = [file for file in FILES if "def main()" in file.read_text(encoding="utf-8")]


def loaded(file: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)  # as for a script; not for longer: its methods.py would hide tests/methods
        return import_file(f"benchmark_{file.stem}", file)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_every_benchmark_says_what_it_compares(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    module = loaded(file)
    assert module.__doc__
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert module.__doc__.strip().partition("\n")[0] in " ".join(capsys.readouterr().out.split())


def test_a_step_of_every_method_that_needs_no_other_run_can_be_measured(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    benchmark = loaded(next(file for file in FILES if file.stem == "methods"))

    def compare(name: str, size: int, rounds: int, precision: str) -> dict[str, float]:
        load_run(None, [f"method={name}", f"batch_size={size}", f"precision={precision}"])
        return {"step": 1.0, "passes": 1.0, "more": 0.0, "trained": 1.0, "others": 0.0}

    monkeypatch.setattr(benchmark, "compare", compare)
    monkeypatch.setattr(sys, "argv", ["methods.py"])
    benchmark.main()
    measured = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(METHODS) - measured == {"distillation", "finetune"}


def test_the_time_of_every_evaluator_of_the_default_set_can_be_measured():
    rows = loaded(next(file for file in FILES if file.stem == "evaluators")).measured(images=600, width=16, rounds=1)
    measured = {name for _, name, is_default, *_ in rows if is_default}
    default = {name for name, one in declared("evaluator").items() if one.values["when"] != "never"}
    assert measured == {*default, "default set"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "msn"])
def test_lightly_s_parts_are_trained_and_measured(name: str, tmp_path: Path):
    for number in range(90):
        folder = tmp_path / f"images/{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 20 + 60 * (number % 3)).save(folder / f"{number}.png")
    benchmark = loaded(next(file for file in FILES if file.stem == "against_lightly"))
    sizes = ["--epochs", "1", "--batch", "20", "--seeds", "1", "--out", str(tmp_path / "rows.csv")]
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--images", str(tmp_path / "images"), "--methods", name, *sizes])
    finally:
        torch.set_num_threads(threads)
    head, row = (tmp_path / "rows.csv").read_text().splitlines()
    assert head == "method,seed,knn,linear"
    assert row.startswith(f"{name},0,")
    assert all(0 <= float(share) <= 1 for share in row.split(",")[2:])


def test_parts_of_images_are_those_of_principal_components():
    reconstruction = loaded(next(file for file in FILES if file.stem == "reconstruction"))
    draw = torch.Generator().manual_seed(0)
    images = (torch.randn(200, 48, generator=draw) * torch.linspace(0.1, 3, 48) + 1).view(200, 3, 4, 4).double()
    parts = reconstruction.Parts.of(images, 0.8)
    expected = PCA(0.8, svd_solver="full").fit(images.flatten(1).numpy())
    most, rest = parts.split(images)
    assert parts.first.shape[1] == expected.n_components_
    known = expected.inverse_transform(expected.transform(images.flatten(1).numpy())) - expected.mean_
    torch.testing.assert_close(most.flatten(1), torch.from_numpy(known))
    torch.testing.assert_close(most + rest + parts.mean.view(3, 4, 4), images)
    mean = parts.mean.view(3, 4, 4).expand_as(images)
    for reconstructed, shares in ((images, (1, 1)), (mean, (0, 0)), (mean + most, (1, 0)), (mean + rest, (0, 1))):
        assert parts.explained(images, reconstructed) == pytest.approx(shares)


@pytest.mark.slow
def test_what_labels_and_reconstructions_make_of_parts_is_measured(tmp_path: Path):
    reconstruction = loaded(next(file for file in FILES if file.stem == "reconstruction"))
    for part, count in (("train", 160), ("val", 40), ("test", 40)):
        for number in range(count):
            folder = tmp_path / f"images/{part}/{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((16, 16), 20 + 60 * (number % 2)).save(folder / f"{number}.png")
    rows = list(reconstruction.rows_of(tmp_path / "images", tmp_path, ["vae"], 0.9, epochs=1, seeds=1))
    assert [row[:2] for row in rows] == [("labels on most", 0), ("labels on rest", 0), ("vae", 0)]
    assert all(0 <= row[2] <= 1 for row in rows)
    assert rows[0][3:] == ("", "")
    assert all(share < 1 for share in rows[2][3:])


SHOWN = loaded(next(file for file in FILES if file.stem == "shown"))


@pytest.mark.slow
def test_without_signs_no_dictionary_tells_bright_spots_from_dark_ones(tmp_path: Path):
    draw = torch.Generator().manual_seed(0)
    place = torch.arange(12.0)
    for part, count in (("train", 200), ("val", 200), ("test", 10)):
        for number in range(count):
            folder = tmp_path / f"images/{part}/{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            x, y = torch.rand(2, generator=draw) * 12
            spot = (-((place - x).square() + (place[:, None] - y).square()) / 4).exp() * (100 - 200 * (number % 2))
            pixels = (128 + spot + torch.randn(12, 12, generator=draw)).round().to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    dictionaries = loaded(next(file for file in FILES if file.stem == "dictionaries"))
    settings = ["data=folder", f"data.root={tmp_path / 'images'}", "epochs=1", "batch_size=40", "encoder.width=20"]
    found = {(name, code): linear for name, code, linear, _ in dictionaries.rows_of(settings, tmp_path, 0)}
    assert len(found) == 12
    for (name, code), linear in found.items():
        assert linear < 0.7 if code == "shrunk, without sign" else linear > 0.9, name


@pytest.mark.parametrize("name", SHOWN.METHODS)
def test_each_encoded_image_has_the_label_of_the_one_it_comes_from(name: str):
    """With one other image in the batch, the features that change are those with its label."""
    method = small(name).eval()
    asked, batch = SHOWN.Asked(method, nn.Identity(), torch.arange(method.data.samples)), batch_of(method)
    features, labels = asked.shown(batch, NOW)
    assert set(labels.tolist()) == set(batch.indices.tolist())
    batch.views[0][2] = batch.views[0][2].flip(2)
    changed = (asked.shown(batch, NOW)[0] != features).any(1)
    assert torch.equal(changed, labels == batch.indices[2])
    expected = F.cross_entropy(asked.shown(batch, NOW)[0], labels)
    torch.testing.assert_close(asked(batch, NOW).loss, expected)


@pytest.mark.slow
def test_labels_are_learnt_from_what_a_task_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Classes that are nothing but a colour are learnt from what exemplar shows, and not from luma."""
    for part, count in (("train", 160), ("val", 40), ("test", 40)):
        for number in range(count):
            folder = tmp_path / f"images/{part}/{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            noise = Image.effect_noise((16, 16), 40)
            # 0.2126 of red and 0.0722 of blue are the same in luma.
            more, shift = (0, 29) if number % 2 else (2, 85)
            channels = [noise.point([value + shift * (c == more) for value in range(256)]) for c in range(3)]
            Image.merge("RGB", channels).save(folder / f"{number}.png")
    shared = ["data=folder", f"data.root={tmp_path / 'images'}", "epochs=4", "batch_size=20", "evaluate.every=4"]
    losses = {}
    for name, more in {"exemplar": ["method.classes=50"], "colorization": []}.items():
        run = load_run(None, [*shared, f"method={name}", *more])
        *_, last = train(run, tmp_path / name, build=SHOWN.asked_for_labels)
        losses[name] = last.metrics["loss"]
    assert losses["exemplar"] < 0.3 < 0.6 < losses["colorization"], "ln 2 is chance"
    built = SHOWN.asked_for_labels(load_run(None, [*shared, "method=exemplar", "method.classes=50"]))
    steps = [p for group in make_optimizer(built.method, built.run.optimizer).param_groups for p in group["params"]]
    assert {id(p) for p in built.forward.classifier.parameters()} <= {id(p) for p in steps}
    out = tmp_path / "rows.csv"
    asked = ["--methods", "exemplar method.classes=50", "--epochs", "1", "--seeds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["shown.py", str(tmp_path / "images"), *asked])
    SHOWN.main()
    assert out.read_text().startswith("method,seed,linear,knn\nexemplar method.classes=50,0,")
    monkeypatch.setattr(sys, "argv", ["shown.py", str(tmp_path / "images"), "--methods", "simclr"])
    with pytest.raises(SystemExit):
        SHOWN.main()


@pytest.mark.parametrize("name", ["data2vec", "ijepa"])
def test_stable_pretraining_s_teachers_are_those_that_are_evaluated(name: str):
    """Only where it is installed, with its thirty packages."""
    pytest.importorskip("stable_pretraining")
    ours: Any = small(name).float()
    made = loaded(next(file for file in FILES if file.stem == "against_stable_pretraining")).METHODS[name](ours)
    teacher, student = made.encoder.teacher, made.encoder.student
    assert {id(p) for p in teacher.parameters()} == {id(p) for p in ours.teacher.vit.parameters()}
    assert {id(p) for p in student.parameters()} == {id(p) for p in ours.encoder.vit.parameters()}
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))


def test_targets_are_split_into_what_is_constant_and_what_places_images_and_patches_tell():
    targets = loaded(next(file for file in FILES if file.stem == "targets"))
    draw = torch.Generator().manual_seed(0)
    place, image, patch = (torch.randn(n, length, 8, generator=draw) for n, length in ((1, 256), (500, 1), (500, 256)))
    found = targets.shares(5 + place + 2 * image + 3 * patch)
    assert found == pytest.approx((25, 1, 4, 9), rel=0.1)
    assert targets.shares(place.expand(5, -1, -1))[2:] == pytest.approx((0, 0), abs=1e-9)
