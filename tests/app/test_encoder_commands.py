"""`eagleray embed` and `eagleray export` on the run of a sweep, and the card that makes a run again."""

import os
import re
import runpy
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import stats

import eagleray
from command_line import command_line
from eagleray.config import read_run
from eagleray.runs.record import Record
from eagleray.runs.restore import recorded_run, restored

pytestmark = pytest.mark.slow  # trains

TINY = {
    "data": {"name": "digits", "limit": 64}, "batch_size": 16, "encoder": {"width": 4}, "threads": 1, "epochs": 1,
    "precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a finished run, and three records of one sweep's point that differ in the seed."""
    folder, before = tmp_path_factory.mktemp("lab"), Path.cwd()
    os.chdir(folder)
    try:
        eagleray.train({**TINY, "tracking": {"uri": "sqlite:///m.db"}}, "run")
        parent = Record.create("sweep", name="s", experiment="s", params={}, run={}, tags={"kind": "sweep"})
        for seed, knn in enumerate((0.5, 0.6, 0.8)):
            file = {**Record.open("run").file(), "seed": seed}
            trial = Record.create(
                f"sweep/trials/{seed}", name=str(seed), experiment="s", params={}, run=file, parent=parent,
                tags={"kind": "trial"},
            )  # fmt: skip
            trial.finish("finished", summary={"knn": knn})
        (Path("sweep/trials/0/checkpoints")).symlink_to(Path("run/checkpoints").absolute())
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def typed(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Run a command in that folder; return its exit code and what it printed."""
    monkeypatch.chdir(place)

    run = command_line(monkeypatch, capsys)

    def code_and_text(*words: str) -> tuple[int, str]:
        told = run(*words)
        return told.code, told.out + told.err

    return code_and_text


def test_what_training_leaves_is_a_loader_without_eagleray_and_a_card(typed: Any, place: Path):
    artifacts = place / "run/artifacts"
    names = {"encoder.safetensors", "load_encoder.py", "README.md"}
    assert names <= {path.name for path in artifacts.iterdir()}
    assert not re.search(r"^\s*(from|import) eagleray", (artifacts / "load_encoder.py").read_text(), re.MULTILINE)
    modes = {stat.S_IMODE((artifacts / name).stat().st_mode) for name in (*names, "views.png")}
    assert len(modes) == 1  # as its neighbours'
    assert not [path for path in artifacts.iterdir() if path.name.startswith(".")]
    loader = runpy.run_path(str(artifacts / "load_encoder.py"))
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    built = restored(recorded_run(Record.open(place / "run")), place / "run")
    with torch.no_grad():
        view = built.loader.evaluation_view(images)
        wanted = built.method.eval().encode(view)
    torch.testing.assert_close(loader["load"]()(view).detach(), wanted, rtol=1e-4, atol=1e-5)
    for number, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(f"{number}.png")
    seen: list[int] = []
    encoder = loader["load"]()
    encoder.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    loader["read"].__globals__["BATCH"] = 2  # more images than memory has room for come in parts
    found = loader["encode"](encoder, [f"{number}.png" for number in range(5)])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert seen == [2, 2, 1]


def test_a_card_makes_the_run_again(place: Path):
    card = (place / "run/artifacts/README.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert read_run(yaml.safe_load(text)) == recorded_run(Record.open(place / "run"))
    record = Record.open(place / "run")
    for said in (record.key, "64 training images of 8 x 8", "eagleray train run.yaml", "no interval can be given"):
        assert said in card
    assert f"| `knn` | {record.summary['knn']:.3f} |" in card


def test_the_card_of_a_sweeps_run_has_intervals_over_its_seeds(typed: Any):
    assert typed("export", "sweep/trials/0", "--out", "seeds")[0] == 0
    (line,) = re.findall(r"^\| `knn` .*$", Path("seeds/README.md").read_text(), re.MULTILINE)
    values = (0.5, 0.6, 0.8)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert line == f"| `knn` | 0.500 | {np.mean(values):.3f} ± {(high - low) / 2:.3f} |"
    assert "mean of seeds 0, 1, 2" in Path("seeds/README.md").read_text()


def test_a_card_names_the_fingerprint_of_the_images(place: Path):
    card, facts = (place / "run/artifacts/README.md").read_text(), Record.open(place / "run").data()
    assert facts is not None
    assert f"- fingerprint of images and labels: `{facts['digest']}`\n" in card
    assert f"- {facts['images']['test']} test images\n" in card


def test_export_writes_a_folder_once(typed: Any):
    code, said = typed("export", "run", "--format", "torchscript")
    assert (code, said.splitlines()) == (0, [
        f"run/exports/torchscript/{name}" for name in ("README.md", "encoder.torchscript.pt", "load_encoder.py")
    ])  # fmt: skip
    code, said = typed("export", "run", "--format", "torchscript")
    assert (code, said.count("\n")) == (2, 1)
    assert "is not empty; name another folder, or add --force" in said
    assert typed("export", "run", "--format", "torchscript", "--force")[0] == 0
    code, said = typed("export", "run", "--format", "timm", "--out", "never")
    assert (code, Path("never").exists()) == (2, False)
    assert "timm has no network like this convnet" in said
    assert typed("export", "sweep")[1].startswith("eagleray: sweep is a sweep; name one of its runs")
    assert typed("export", "nowhere")[0] == 2
    assert not Path("nowhere").exists()


def test_embed_writes_the_features_of_a_folder_once(typed: Any):
    Path("images/a").mkdir(parents=True)
    Path("images/Thumbs.db").write_text("")
    for number, side in enumerate((8, 12, 20)):
        Image.new("L", (side, 10 + number), 40 * number).save(f"images/a/{number}.png")
    assert typed("embed", "run", "images", "--out", "f.npz") == (
        0, "f.npz: 3 images, 192 features each; 1 other file skipped\n",
    )  # fmt: skip
    encoder = eagleray.load_encoder("run")
    with np.load("f.npz") as found, torch.no_grad():
        paths = [f"images/{name}" for name in found["paths"]]
        np.testing.assert_allclose(found["features"], encoder(encoder.read(paths)), rtol=1e-5, atol=1e-6)
        assert Record.open("run").key in str(found["facts"])
        assert eagleray.__version__ in str(found["facts"])
    for words, why in (
        (("--out", "f.npz"), "exists already; name another file, or add --force"),
        (("--out", "none/f.npz"), "there is no folder none"),
        (("--out", "f.csv"), r"written as .parquet or .npz"),
        (("--out", "g.npz", "--device", "tpu"), "--device tpu is not one of auto, cpu, cuda"),
    ):
        code, said = typed("embed", "run", "images", *words)
        assert (code, said.count("\n")) == (2, 1)
        assert why in said
    Path("images/broken.png").write_text("no image")
    assert typed("embed", "run", "images", "--out", "f.npz", "--force", "--skip-bad")[1].endswith(
        "left out, because they cannot be read: broken.png\n"
    )
