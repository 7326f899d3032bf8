"""A record is written once for each epoch; weights are measured again from it."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from eagleray.config import Run, load_run
from eagleray.config.metrics import reported
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Diverged
from eagleray.loop import train
from eagleray.runs.assemble import images_of
from eagleray.runs.record import Record
from eagleray.runs.restore import evaluated, evaluated_on_test, restored
from eagleray.runs.writer import keep_data, recorded

pytestmark = pytest.mark.slow

TINY = ["data.limit=160", "batch_size=40", "epochs=3", "encoder.width=8", "threads=1", "precision=fp32", "device=cpu"]


def run_of(*more: str) -> Run:
    return load_run(None, [*TINY, *more])


def started(run: Run, directory: Path) -> Record:
    return Record.create(directory, name="run", experiment="test", params={}, run=run.file())


def test_every_epoch_is_written_once_however_often_the_run_is_resumed(tmp_path: Path):
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


def test_an_epoch_that_was_saved_but_not_reported_is_reported_on_resuming(tmp_path: Path):
    """Killed between the checkpoint and the line in metrics.jsonl."""
    run = run_of("evaluate.linear.when=never")
    next(report for report in train(run, tmp_path) if report.epoch_ended)
    record = started(run, tmp_path)
    for _ in recorded(train(run, tmp_path), record):
        pass
    assert [row["epoch"] for row in record.metrics()] == [1, 2, 3]


def test_a_run_goes_on_with_the_images_that_it_began_with(tmp_path: Path):
    run = run_of()
    record, data = started(run, tmp_path), images_of(run)
    for _ in range(2):
        keep_data(run, record, data)
    with pytest.raises(ConfigError, match=r"began with other images than there are now .*: put them back, or start"):
        keep_data(run, record, replace(data, digest="0a1b"))
    assert (record.data() or {})["digest"] == data.digest


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
    tested = evaluated_on_test(without, tmp_path)
    assert tested == {name: value for name, value in again.items() if name.startswith("test_")}
    assert {"test_knn", "test_linear"} <= set(tested)
    with pytest.raises(ConfigError, match="has no checkpoint"):
        restored(run, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "more",
    [
        [],
        # of no guess that counts there is no precision
        ["method=fixmatch", "labels.per_class=3", "evaluate.pseudo_labels.threshold=0"],
        ["method=supervised", "labels.per_class=5", "evaluate.pseudo_labels.threshold=0"],
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
