"""Collapse is a state of a trial: without what keeps embeddings apart it ends so, and a healthy one does not."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eagleray.config import load_run
from eagleray.contracts.features import Features
from eagleray.contracts.report import Report
from eagleray.evaluators.balance import Balance
from eagleray.ray_backend import trial as trials
from eagleray.ray_backend.trial import results
from eagleray.runs.evaluation import collapsed
from eagleray.runs.record import Record
from test_benchmarks import FILES, loaded

HEALTHY = ("simclr", "byol", "simsiam", "vicreg", "dino", "barlow_twins")  # the benchmark has them all
CELLS = ("encoder.grid=2", "encoder.last=2")  # the convnet's own; collapses more slowly than with one mean
BENCHMARK = loaded(next(file for file in FILES if file.stem == "collapse"))


def ended(folder: Path, case: Any, *more: str) -> Record:
    """Train 200 steps as a trial of a sweep that stops what has collapsed, in this process."""
    Record.create(folder / "sweep", name="s", experiment="e", params={}, run={})
    run = load_run(None, [*BENCHMARK.settings(case, seed=0), *more])
    place = {"run": run.file(), "directory": str(folder / "sweep/trials/a"), "params": {}, "tags": {}, "values": {}}
    with case.taken_out():
        last = [*results({**place, "imposed": {}, "end": None, "replay": True, "stop_collapsed": True})][-1]
    assert last["done"]
    return Record.open(folder / "sweep/trials/a")


@pytest.mark.slow
@pytest.mark.parametrize("case", BENCHMARK.BROKEN, ids=str)
def test_a_broken_method_ends_collapsed_within_300_steps(case: Any, tmp_path: Path):
    """Of 500."""
    record = ended(tmp_path, case, "epochs=50", *CELLS)
    assert record.state == "collapsed"
    assert re.search(r"all views agree|one point or one line|a tenth of their first extent", record.status["message"])
    assert record.metrics()[-1]["step"] <= 300


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in BENCHMARK.HEALTHY if case.method in HEALTHY], ids=str)
def test_a_healthy_method_finishes(case: Any, tmp_path: Path):
    assert ended(tmp_path, case, "epochs=4", *CELLS).state == "finished"


def test_classes_may_need_few_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two classes are two points, which lie on a line: no collapse of a method that learns them."""
    line, apart = {"z_std": 1.0, "z_rank": 1.0}, {"z_std": 1.0, "z_rank": 9.0}
    case = BENCHMARK.Case("supervised", settings=("labels.per_class=4",))

    def falls_on_a_line(run: Any, directory: Path, **_: Any) -> Any:
        for epoch, metrics in enumerate((apart, line, line), 1):
            yield Report(BENCHMARK.Progress(epoch, 3, epoch, 3), metrics, 1.0, epoch_ended=True)

    monkeypatch.setattr(trials, "train", falls_on_a_line)
    assert ended(tmp_path / "classes", case).state == "finished"
    assert ended(tmp_path / "none", BENCHMARK.Case("simclr")).state == "collapsed"


def test_a_trial_whose_classifier_gives_all_images_one_class_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def guesses_one_class(run: Any, directory: Path, **_: Any) -> Any:
        for epoch in (1, 2, 3):
            yield Report(BENCHMARK.Progress(epoch, 3, epoch, 3), {"entropy_share": 0.01}, 1.0, epoch_ended=True)

    monkeypatch.setattr(trials, "train", guesses_one_class)
    record = ended(tmp_path, BENCHMARK.Case("fixmatch", settings=("labels.per_class=4",)))
    assert (record.state, len(record.metrics())) == ("collapsed", 2)
    assert "nearly all images one class" in record.status["message"]


def test_embeddings_collapse_onto_a_point_or_a_line_or_to_a_tenth_of_their_extent():
    apart, wide, small = ({"z_std": s, "z_rank": r} for s, r in ((0.9, 20), (0.08, 30), (0.3, 5.5)))
    line, point = {"z_std": 0.6, "z_rank": 1.9}, {"z_std": 0.009, "z_rank": 30}
    assert not collapsed([apart])
    assert collapsed([apart, small])
    assert not collapsed([wide, small])  # DINO with the paper's head begins with little spread
    assert not collapsed([apart, small, apart])  # the last epoch decides
    assert collapsed([line])
    assert collapsed([point])


def test_features_collapse_to_less_than_half_of_the_directions_of_the_untrained_network():
    apart = {"z_std": 0.9, "z_rank": 20}
    flat, half = {**apart, "rank_share": 0.49}, {**apart, "rank_share": 0.5}
    assert collapsed([flat, apart, flat]) == "the features have 49% of the directions of the untrained network"
    assert not collapsed([flat]), "a training may begin so, and recover"
    assert not collapsed([flat, flat, half])
    assert not collapsed([apart, half, flat])


def guessing(shares: list[float], labels: list[int]) -> dict[str, float]:
    """Return the metrics of a classifier that guesses these shares of the images on the mean."""
    logits = Features(torch.tensor([shares] * len(labels), dtype=torch.float64).log(), torch.tensor(labels))
    return dict(Balance(Balance.Config())(SimpleNamespace(logits=logits)).numbers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "labels", "collapses", "healthy"),
    [
        (10, [*range(10)] * 9, 0.97, 0.96),
        (2, [0, 1] * 50, 0.988, 0.986),
        (2, [0] * 99 + [1], 0.9994, 0.99),  # 99 of 100 images are of one class, and the classifier says so
        (100, [*range(100)], 0.95, 0.94),
    ],
)
def test_guesses_collapse_to_one_class(classes: int, labels: list[int], collapses: float, healthy: float):
    one, several = (
        guessing([share, *[(1 - share) / (classes - 1)] * (classes - 1)], labels) for share in (collapses, healthy)
    )
    assert collapsed([several, one, one], classes=True) == "the classifier gives nearly all images one class"
    assert not collapsed([several, several], classes=True)
    assert not collapsed([one], classes=True), "a training may begin so, and recover"
    assert not collapsed([one, one, several], classes=True)
    assert not collapsed([one, several, one], classes=True)
    assert collapsed([one, {"loss": 1.0}, one], classes=True), "the last two that were evaluated count"
    assert not collapsed([{"loss": 1.0}] * 3, classes=True), "nothing is known of the guesses"


def test_a_loss_that_only_collapse_reaches_is_collapse():
    """DINO without centring, VICReg without variance: a hundredth of the first loss is left."""
    begun, agreed = {"z_std": 0.9, "z_rank": 20, "loss": 2.5}, {"z_std": 0.9, "z_rank": 20, "loss": 0.02}
    assert collapsed([begun, agreed], 0.0)
    assert not collapsed([begun, {**agreed, "loss": 0.03}], 0.0)
    assert not collapsed([begun, agreed])  # supervised learning may well end there
    assert collapsed([{**begun, "loss": -0.1}, {**agreed, "loss": -0.995}], -1.0)  # SimSiam's cosine
