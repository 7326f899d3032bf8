"""A record is written once for each epoch; weights are measured again from it; floors are what they say."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from eagleray.config import Run, load_run
from eagleray.config.metrics import reported
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Diverged
from eagleray.loop import train
from eagleray.runs.assemble import images_of
from eagleray.runs.floors import Floor, floors, pixels
from eagleray.runs.record import Record
from eagleray.runs.restore import evaluated, evaluated_on_test, restored
from eagleray.runs.writer import recorded

TINY = ["data.limit=160", "batch_size=40", "epochs=3", "encoder.width=8", "threads=1", "precision=fp32", "device=cpu"]


def run_of(*more: str) -> Run:
    return load_run(None, [*TINY, *more])


def started(run: Run, directory: Path) -> Record:
    return Record.create(directory, name="run", experiment="test", params={}, run=run.file())


def test_every_epoch_is_written_once_however_often_the_run_is_taken_up(tmp_path: Path):
    run = run_of("checkpoints.every_epochs=2", "evaluate.linear.when=never")
    whole = started(run, tmp_path / "whole")
    for _ in recorded(train(run, whole.directory), whole):
        pass
    parts = started(run, tmp_path / "parts")
    for _ in range(4):  # the first epoch has no checkpoint and is done again
        list(itertools.islice(recorded(train(run, parts.directory), parts), 1))
    for _ in recorded(train(run, parts.directory), parts):
        pass
    lines = [(row["step"], row["epoch"], row["metrics"]) for row in parts.read()[0]]
    for _, _, metrics in lines:
        metrics.pop("images_per_second")
    assert [line[:2] for line in lines] == [(4, 1.0), (8, 2.0), (12, 3.0)]
    assert [line[2] for line in lines] == [
        {name: value for name, value in row.items() if name not in ("step", "epoch", "time", "images_per_second")}
        for row in whole.metrics()
    ]
    assert parts.state == "finished"
    assert {**parts.summary, "images_per_second": 0} == {**whole.summary, "images_per_second": 0}


def test_an_epoch_that_was_saved_and_not_yet_told_is_told_on_resuming(tmp_path: Path):
    """Killed between the checkpoint and the line in metrics.jsonl."""
    run = run_of("evaluate.linear.when=never")
    next(report for report in train(run, tmp_path) if report.epoch_ended)
    record = started(run, tmp_path)
    for _ in recorded(train(run, tmp_path), record):
        pass
    assert [row["epoch"] for row in record.metrics()] == [1, 2, 3]


def test_a_diverged_run_is_recorded_as_failed(tmp_path: Path):
    run = run_of("optimizer.lr=1e30", "evaluate.linear.when=never")
    record = started(run, tmp_path)
    with pytest.raises(Diverged):
        list(recorded(train(run, tmp_path), record))
    assert record.state == "failed"
    assert "the loss is" in record.status["message"]


def test_reloaded_weights_measure_as_the_run_itself_did(tmp_path: Path):
    run = run_of()
    *_, last = train(run, tmp_path)
    again = evaluated(run, tmp_path)
    trained = {name: value for name, value in last.metrics.items() if not name.startswith("z_")}
    del trained["loss"]
    assert again == pytest.approx(trained, abs=1e-6)
    without = run_of("evaluate.test=false")
    assert evaluated_on_test(without, tmp_path) == {name: again[name] for name in ("test_knn", "test_linear")}
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        restored(run, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["method=fixmatch", "labels.per_class=3"],
        ["method=supervised", "labels.per_class=5"],
        ["data.validation=0"],
        ["evaluate.collapse.when=never", "evaluate.pairs.when=end"],
    ],
)
def test_the_numbers_of_a_run_are_known_before_it_starts(more: list[str], tmp_path: Path):
    run = run_of(*more, "epochs=1")
    *_, last = train(run, tmp_path)
    data = images_of(run)
    known = reported(run, labels=data.train.labels is not None, validation=data.validation is not None)
    assert {name for name in last.numbers if not name.startswith("test_")} == known


def test_each_encoder_and_data_set_has_its_floors_once():
    masked = load_run(None, [*(setting for setting in TINY if not setting.startswith("encoder")), "method=mae"])
    tuned = load_run(None, [TINY[0], "method=finetune", "encoder=pretrained", "encoder.run=somewhere"])
    runs = [run_of(), run_of("method=byol"), run_of("encoder.width=16"), masked, tuned]
    assert [(floor.name, floor.raw) for floor in floors([*runs, *runs])] == [
        ("raw pixels digits", True),
        ("random init convnet digits", False),
        ("random init convnet digits 2", False),
        ("random init vit_tiny digits", False),
        ("source encoder pretrained digits", False),
    ]


def test_raw_pixels_are_judged_as_they_are():
    """Held against scikit-learn's neighbours on the pixels themselves."""
    run = run_of("evaluate.knn.k=1", "evaluate.linear.when=never")
    data = images_of(run)
    assert data.validation is not None
    flat = []
    for images in (data.train, data.validation):
        batch = next(images.batches([torch.arange(len(images))]))
        flat.append((batch.flatten(1).numpy() / 255.0 - np.mean(data.info.mean)) / np.mean(data.info.std))
    neighbours = KNeighborsClassifier(1, metric="cosine").fit(flat[0], data.train.labels)
    expected = neighbours.score(flat[1], data.validation.labels)
    assert Floor("raw", run, raw=True).measure()["knn"] == pytest.approx(expected, abs=1e-6)


def test_large_images_are_shrunk_to_be_compared():
    images = torch.arange(2 * 3 * 64 * 64, dtype=torch.float32).view(2, 3, 64, 64)
    assert pixels(images).shape == (2, 3 * 32 * 32)
    assert pixels(images)[0, 0] == images[0, 0, :2, :2].mean()
    assert torch.equal(pixels(images[..., :32, :32]), images[..., :32, :32].flatten(1))


def test_random_init_is_the_run_before_its_first_step():
    run = run_of("evaluate.linear.when=never")
    floor = next(floor for floor in floors([run]) if not floor.raw)
    assert floor.measure() == floor.measure()
    other = run_of("evaluate.linear.when=never", "seed=1")
    assert next(floor for floor in floors([other]) if not floor.raw).measure() != floor.measure()
