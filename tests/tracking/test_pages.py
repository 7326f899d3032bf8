"""MLflow's pages as a person sees them: a real server, started by `eagleray ui`, in a real headless Chromium."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from eagleray.encoders.convnet import ConvNet
from eagleray.runs.export.encoder import Build, ExportedEncoder
from eagleray.runs.export.formats import write
from eagleray.runs.record import SYSTEM, Record
from eagleray.tracking import sync_all
from mlflow_pages import CHROMIUM, browser, open_charts, open_report, open_views, served

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

QUESTION = "Do flips suit handwritten digits, and does the temperature matter?"
FINDING = "augment.flip matters most: knn is 0.905 at 0 and 0.817 at 0.5."
KNN = {(0, 0.1): (0.90, 0.91), (0, 0.5): (0.89, 0.92), (0.5, 0.1): (0.83, 0.84), (0.5, 0.5): (0.79, 0.81)}
FLOORS = {"random init convnet digits": ("random", 0.70, 0.72), "raw pixels digits": ("pixels", 0.97, 0.98)}


# A sweep, as trials leave it in its directory ---------------------------------------------------------------------


def make_sweep(directory: Path) -> Record:
    file = {
        "name": "flips",
        "question": QUESTION,
        "vary": {"augment.flip": [0, 0.5], "method.temperature": [0.1, 0.5]},
        "metric": "knn",
        "mode": "max",
        "floor": ["random", "pixels"],
    }
    meanings = {"knn": "share of the images that a vote of their nearest training images classifies right"}
    sweep = Record.create(
        directory, name="flips", experiment="flips", params={}, run=file, tags={"kind": "sweep"}, meanings=meanings
    )
    for point, (kind, *values) in FLOORS.items():
        for seed, knn in enumerate(values):
            tags = {"kind": "floor", "floor": kind, "point": point, "label": point}
            make_run(sweep, f"{point} seed{seed}", {"seed": seed}, tags, [knn])
    for number, ((flip, temperature), values) in enumerate(KNN.items()):
        for seed, knn in enumerate(values):
            params = {"augment.flip": flip, "method.temperature": temperature, "seed": seed}
            tags = {"kind": "trial", "point": str(number), "label": f"{number:03}"}
            winner = {"winner": "yes"} if number == 0 else {}
            trial = make_run(sweep, f"{number:03}-seed{seed}", params, {**tags, **winner}, [knn - 0.1, knn - 0.03, knn])
            draw_views(trial.artifacts / "views.png", flip, seed)
            if number == seed == 0:  # the one that becomes a model
                write("safetensors", encoder(), trial.artifacts, {"eagleray": "0.1.0"}, "a card")
    sweep = sweep.tag({"finding": FINDING})
    report = (
        f"<html><body><h1>flips</h1><p>{FINDING}</p><svg width='90' height='40'><rect width='90' height='40'/></svg>"
    )
    (sweep.artifacts / "report.html").write_text(report)
    sweep.finish("finished", summary={"knn": 0.905})
    return sweep


def make_run(sweep: Record, name: str, params: dict, tags: dict, knn: list[float]) -> Record:
    run = {"data": {"name": "digits"}, "image_size": None, "encoder": {"name": "convnet"}, "seed": params["seed"]}
    place = sweep.directory / "trials" / name.replace(" ", "-")
    record = Record.create(place, name=name, experiment="flips", params=params, run=run, parent=sweep, tags=tags)
    images = {"train": 1293, "validation": 143, "test": 361}
    facts = {"name": "digits", "source": {}, "digest": "381b680e22586cbc", "images": images}
    record.keep_data({**facts, "classes": 10, "size": 8, "channels": 1, "skipped": 0})
    for epoch, value in enumerate(knn, 1):
        record.append(20 * epoch, {"knn": value, "dead": 0.5, "loss": 5 / epoch}, epoch)
        record.append(20 * epoch, {"system/cpu_cores_used": 1.5}, epoch, file=SYSTEM)
    record.finish("finished", summary={"knn": knn[-1]})
    return record


def draw_views(path: Path, flip: float, seed: int) -> None:
    """Draw digits and four views of each, as `runs.preview` does; here some are mirrored and all are noisy."""
    digits, draw = load_digits(return_X_y=True)[0].reshape(-1, 8, 8), np.random.default_rng(seed)
    images = digits[4 * seed : 4 * seed + 4] / 16
    rows = []
    for image in images:
        views = [image[:, ::-1] if flip and draw.random() < flip else image for _ in range(4)]
        noisy = [np.clip(view + draw.normal(0, 0.1, view.shape), 0, 1) for view in views]
        rows.append(np.hstack([np.pad(each, 1, constant_values=1) for each in (image, *noisy)]))
    pixels = np.kron(np.vstack(rows), np.ones((8, 8)))
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)


def encoder() -> ExportedEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ConvNet("convnet", ConvNet.Config(width=4, depth=2), image_size=8, channels=1)
    build = Build("convnet", {"width": 4, "depth": 2}, 8, 16, 1, mean=(0.3,), std=(0.4,))
    return ExportedEncoder(network, build).eval()


# The server and the browser ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    make_sweep(folder / "runs/flips/20260101-120000")
    done = sync_all(folder / "runs", f"sqlite:///{folder}/mlflow.db")
    assert (done.sent, done.unsent, done.lacks) == (13, {}, [])
    return folder


@pytest.fixture(scope="module")
def links(store) -> Iterator[dict[str, str]]:
    with served(store) as links:
        yield links


@pytest.fixture(scope="module")
def page() -> Iterator["Page"]:
    if CHROMIUM is None:
        why = "there is no Chromium here; on Debian and Ubuntu: apt-get install chromium"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    with browser() as page:
        yield page


@pytest.fixture
def troubles(page) -> Iterator[list[str]]:
    """Collect what goes wrong on a page, without what MLflow 3.17 says of itself on every page."""
    found: list[str] = []

    def answered(response):
        if response.status >= 400 and not response.url.endswith("/users/current"):
            found.append(f"{response.status} {response.url}")

    def raised(error):
        found.append(str(error))

    page.on("response", answered)
    page.on("pageerror", raised)
    yield found
    page.remove_listener("response", answered)
    page.remove_listener("pageerror", raised)
    assert page.get_by_text("Error loading shared view state").count() == 0


def column(page: "Page", name: str) -> list[str]:
    """Return the cells of a column of the runs' table, from top to bottom."""
    cells = page.eval_on_selector_all(
        f"[row-index] [col-id={name!r}]",
        "cells => cells.map(cell => [+cell.closest('[row-index]').getAttribute('row-index'), cell.innerText.trim()])",
    )
    return [text for _, text in sorted(cells)]


# What a person sees -----------------------------------------------------------------------------------------------


def test_the_first_link_opens_the_table_of_runs_sorted_by_the_metric(links, page, troubles):
    page.goto(links["flips"])
    page.wait_for_selector("[row-index='11'] [col-id='metrics.`knn`']")
    assert page.get_by_text("Model training").count() == 1
    assert page.get_by_text(QUESTION).is_visible()

    knn = [float(text) for text in column(page, "metrics.`knn`")]
    everything = [*(each for pair in KNN.values() for each in pair), *(v for _, *vs in FLOORS.values() for v in vs)]
    assert knn == sorted(everything, reverse=True)
    names = [name.split("\n")[-1] for name in column(page, "attributes.`Run Name`")]  # the first line is a colour
    assert names[:3] == ["floor: raw pixels digits, seed 1", "floor: raw pixels digits, seed 0", "001-seed1"]
    by_name = {name: place for place, name in enumerate(names)}
    gains, flips = column(page, "metrics.`knn_above_random`"), column(page, "params.`augment.flip`")
    temperatures, winners = column(page, "params.`method.temperature`"), column(page, "tags.`winner`")
    best, worst = by_name["000-seed1"], by_name["003-seed0"]
    assert float(gains[best]) == pytest.approx(0.91 - 0.72)
    assert float(column(page, "metrics.`knn_above_pixels`")[worst]) == pytest.approx(0.79 - 0.97)
    assert (flips[worst], temperatures[worst], winners[worst], winners[best]) == ("0.5", "0.5", "-", "yes")
    edge = page.locator("[col-id='params.`augment.flip`']").last.bounding_box()
    assert edge is not None
    assert edge["x"] + edge["width"] < 1500  # settings are in sight, not behind the edge of the window
    assert troubles == []


def test_the_charts_begin_with_what_was_varied_and_the_metric(links, page, troubles):
    open_charts(page, links["flips"])
    assert page.locator(".parcoords text.label").all_text_contents() == ["augment.flip", "method.temperature", "knn"]
    open_views(page)
    assert troubles == []


def test_the_sweeps_page_has_the_finding_and_its_report_with_pictures(links, page, troubles):
    open_report(page, links["flips"])
    report = page.frame_locator("iframe")
    assert report.locator("h1").inner_text() == "flips"
    assert report.locator("rect").is_visible()
    page.get_by_role("tab", name="Overview").click()
    assert page.get_by_text(FINDING).first.is_visible()
    assert troubles == []


def test_the_best_encoder_is_a_model_with_the_metrics_of_its_run(links, page, troubles):
    page.goto(links["flips"].replace("/experiments/1/runs", "/experiments/1/models"))
    page.locator("a[href*='/models/m-']").first.click()
    page.get_by_text(FINDING).first.wait_for()
    page.get_by_text('mlflow.pyfunc.load_model("models:/m-').first.wait_for()
    page.goto(links["all experiments"].replace("/experiments?", "/models/flips?"))
    page.get_by_text("Version 1").wait_for()
    assert page.get_by_text("best").first.is_visible()
    assert troubles == []


def test_the_registered_encoder_takes_paths_or_arrays_and_nothing_of_eagleray(store, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    paths = [str(tmp_path / f"{number}.png") for number in range(5)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    with torch.no_grad():
        np.savez(tmp_path / "both", images=images, features=encoder()(encoder().read(paths)).numpy(), paths=paths)
    program = f"""
        import sys
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.startswith("eagleray"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Blocked())
        import mlflow, numpy as np, pandas as pd
        mlflow.set_tracking_uri("sqlite:///{store}/mlflow.db")
        model, both = mlflow.pyfunc.load_model("models:/flips@best"), np.load("both.npz")
        images, paths = both["images"], both["paths"].tolist()
        for given in (images, images[..., None], paths, pd.Series(paths), pd.DataFrame({{"path": paths}})):
            features = model.predict(given)
            assert features.dtype == np.float32
            np.testing.assert_allclose(features, both["features"], rtol=1e-4, atol=1e-5)
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
