"""What is measured of a method's own classifier: calibration, balance of its guesses, and its pseudo-labels."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from scipy.stats import norm

from eagleray.config import load_run
from eagleray.contracts.evaluator import Found
from eagleray.contracts.features import Features
from eagleray.contracts.interval import wilson
from eagleray.evaluators.balance import Balance
from eagleray.evaluators.calibration import Calibration, bins, calibration_error, interval
from eagleray.evaluators.pseudo_labels import PseudoLabels
from eagleray.loop import train
from eagleray.runs.assemble import assemble
from eagleray.runs.evaluation import Encoded
from eagleray.runs.record import Record
from eagleray.runs.writer import recorded
from eagleray.tracking.contents import Rows

RUN = ["data=digits", "data.limit=300", "batch_size=40", "encoder.width=4", "threads=1", "device=cpu", "precision=fp32",
       "labels.per_class=3", "epochs=2"]  # fmt: skip
OF_CLASSIFIER = {"accuracy", "ece", "guess_entropy", "entropy_share", "largest_class", "pseudo_recall"}


@dataclass
class Given:
    """The `Encodings` of a classifier with given logits."""

    logits: Features | None = None
    guesses: Features | None = None
    method: Any = field(default_factory=lambda: SimpleNamespace(config=SimpleNamespace()))


def found(evaluator: Any, given: Given, **settings: Any) -> Found:
    return evaluator(evaluator.Config(**settings))(given)


def drawn(count: int, classes: int, scale: float) -> Features:
    """Draw logits of a classifier, 0.6 of whose guesses are right, and others by chance."""
    random = np.random.default_rng(count)
    logits = scale * random.standard_normal((count, classes))
    labels = np.where(random.random(count) < 0.6, logits.argmax(1), random.integers(0, classes, count))
    return Features(torch.from_numpy(logits), torch.from_numpy(labels))


def of_probabilities(rows: Any, labels: Any = None) -> Features:
    """Return the logits of a classifier that gives these probabilities."""
    return Features(torch.tensor(rows, dtype=torch.float64).log(), None if labels is None else torch.tensor(labels))


# calibration


def by_hand(given: Features, count: int) -> tuple[float, dict[int, list[float]]]:
    """Return Guo's equation 3 and the sums of each bin, image by image."""
    of_bins: dict[int, list[float]] = {}
    for logits, label in zip(given.features.numpy(), given.targets().numpy(), strict=True):
        chances = np.exp(logits) / np.exp(logits).sum()
        place = next(m for m in range(count) if m / count < chances.max() <= (m + 1) / count)
        sums = of_bins.setdefault(place, [0, 0.0, 0.0])
        for number, more in enumerate((1, chances.max(), float(chances.argmax() == label))):
            sums[number] += more
    return sum(n / len(given) * abs(hits / n - sure / n) for n, sure, hits in of_bins.values()), of_bins


# The last column: MulticlassCalibrationError(classes, n_bins=bins, norm="l1") of torchmetrics 1.9.0 on the same.
@pytest.mark.parametrize(
    ("images", "classes", "scale", "count", "theirs"),
    [
        (1000, 10, 2.0, 15, 0.2347869),
        (1000, 10, 2.0, 10, 0.2302869),
        (57, 3, 4.0, 15, 0.1863826),
        (2000, 100, 3.0, 15, 0.2398839),
    ],
)
def test_ece_is_its_formula_and_torchmetrics(images: int, classes: int, scale: float, count: int, theirs: float):
    given = drawn(images, classes, scale)
    result = found(Calibration, Given(given), bins=count)
    expected, of_bins = by_hand(given, count)
    assert result.numbers["ece"] == pytest.approx(expected)
    assert result.numbers["ece"] == pytest.approx(theirs, abs=1e-6)
    assert result.images == images
    heads, *rows = result.tables["calibration"]
    assert heads[:5] == ("above", "up_to", "images", "confidence", "right")
    for row, (place, (n, sure, hits)) in zip(rows, sorted(of_bins.items()), strict=True):
        assert row[:5] == pytest.approx([place / count, (place + 1) / count, n, sure / n, hits / n])
        assert row[5:] == pytest.approx(wilson(hits / n, int(n)))


def test_a_bin_holds_its_upper_edge():
    confidence = torch.tensor([0.2, 0.2000001, 0.4, 1.0], dtype=torch.float64)
    assert bins(confidence, 5).tolist() == [0, 1, 1, 4]


def test_confidence_that_is_right_and_that_is_not():
    sure = of_probabilities([[0.75, 0.25]] * 8, [0] * 6 + [1] * 2)
    assert found(Calibration, Given(sure)).numbers["ece"] == pytest.approx(0)
    assert found(Calibration, Given(sure.at(torch.arange(6, 8)))).numbers["ece"] == pytest.approx(0.75)
    alone = found(Calibration, Given(sure.at(torch.arange(1))))
    assert (alone.numbers["ece"], alone.intervals) == (pytest.approx(0.25), {})


@pytest.mark.parametrize("images", [60, 1000])
@pytest.mark.parametrize("wrong", [0.0, 0.05, 0.3])
def test_the_interval_of_ece_holds_the_truth_although_chance_adds_to_it(images: int, wrong: float):
    """At least in 95 of 100 draws, where that of a mean holds hardly ever of a classifier that is calibrated."""
    random, held, alone = np.random.default_rng(0), list[bool](), list[bool]()
    for _ in range(500):
        sure = torch.from_numpy(random.uniform(wrong, 1, images))
        right = (torch.from_numpy(random.random(images)) < sure - wrong).double()
        places = bins(sure, 15)
        ((low, high),) = interval(sure, right, places).values()
        held.append(low <= wrong <= high)
        value, gaps = calibration_error(sure, right, places).item(), right - sure
        signs = torch.stack([gaps[places == place].sum().sign() for place in range(15)])[places]
        alone.append(value - norm.ppf(0.975) * (signs * gaps).std().item() / images**0.5 <= wrong)
    assert np.mean(held) > 0.95
    if not wrong:
        assert np.mean(alone) < 0.1, "the estimate alone is far too high"


# balance


def test_balance_is_its_formulas():
    given = drawn(400, 7, 2.0)
    result, chances = found(Balance, Given(given)), torch.softmax(given.features, 1).numpy()
    mean, classes = chances.mean(0), np.bincount(given.targets().numpy()) / 400
    assert result.numbers["guess_entropy"] == pytest.approx(scipy_entropy(mean) / math.log(7))
    assert result.numbers["entropy_share"] == pytest.approx(scipy_entropy(mean) / scipy_entropy(classes))
    assert result.numbers["largest_class"] == np.bincount(chances.argmax(1)).max() / 400
    assert result.images == 400


def test_its_intervals_have_the_jackknifes_error():
    given = drawn(150, 3, 1.0)
    tilted = Features(given.features + torch.tensor([1.0, 0, 0]), given.labels)
    result, chances = found(Balance, Given(tilted)), torch.softmax(tilted.features, 1).numpy()
    without = [scipy_entropy(np.delete(chances, left, 0).mean(0)) for left in range(150)]
    error = np.std(without) * 149**0.5
    for name, scale in (
        ("guess_entropy", math.log(3)),
        ("entropy_share", scipy_entropy(np.bincount(given.targets()) / 150)),
    ):
        low, high = result.intervals[name]
        assert (low + high) / 2 == pytest.approx(result.numbers[name])
        assert (high - low) / 2 / norm.ppf(0.975) == pytest.approx(error / scale, rel=0.03)


def test_balance_at_its_ends():
    one = found(Balance, Given(of_probabilities([[1 - 2e-9, 1e-9, 1e-9]] * 9, [0, 1, 2] * 3))).numbers
    assert one == {"guess_entropy": pytest.approx(0, abs=1e-6), "entropy_share": pytest.approx(0, abs=1e-6),
                   "largest_class": 1}  # fmt: skip
    each = Features(1e4 * torch.eye(3), torch.arange(3))  # probabilities of exactly 0
    assert found(Balance, Given(each)).numbers == pytest.approx(
        {"guess_entropy": 1, "entropy_share": 1, "largest_class": 1 / 3}
    )


def test_balance_needs_no_labels():
    given = of_probabilities([[0.9, 0.1], [0.2, 0.8]])
    assert set(found(Balance, Given(given)).numbers) == {"guess_entropy", "largest_class"}
    alike = Features(given.features, torch.zeros(2, dtype=torch.long))  # no entropy to compare with
    assert set(found(Balance, Given(alike)).numbers) == {"guess_entropy", "largest_class"}


# pseudo-labels

GUESSES = of_probabilities([[0.97, 0.03], [0.96, 0.04], [0.3, 0.7], [0.2, 0.8], [0.55, 0.45]], [0, 1, 1, 1, 1])


def test_precision_is_of_confident_guesses_and_recall_of_all():
    result = found(PseudoLabels, Given(guesses=GUESSES))
    assert result.numbers == {"pseudo_precision": 1 / 2, "pseudo_recall": 1 / 5}
    assert result.images == {"pseudo_precision": 2, "pseudo_recall": 5}


def test_the_threshold_is_the_settings_the_methods_or_the_usual_one():
    own = Given(guesses=GUESSES, method=SimpleNamespace(config=SimpleNamespace(threshold=0.6)))
    for given, settings, used, precision in (
        (own, {}, "0.6", 3 / 4),
        (own, {"threshold": 0.5}, "0.5", 3 / 5),
        (Given(guesses=GUESSES), {"threshold": 0.75}, "0.75", 2 / 3),
        (Given(guesses=GUESSES), {}, "0.95", 1 / 2),
    ):
        result = found(PseudoLabels, given, **settings)
        assert result.numbers["pseudo_precision"] == pytest.approx(precision)
        assert list(result.words) == [f"pseudo-labels count here from a confidence of {used} on"]


def test_where_no_guess_is_confident_there_is_no_precision():
    unsure = Given(guesses=GUESSES.at(torch.tensor([4])))
    assert found(PseudoLabels, unsure).numbers == {"pseudo_recall": 0}
    assert found(PseudoLabels, Given()).numbers == {}


def labelled_by(built: Any) -> set[int]:
    assert built.loader.labelled_set is not None
    return set(built.loader.labelled_set[0].tolist())


def encoded(built: Any) -> Encoded:
    method = built.method.eval()
    return Encoded(built.evaluation, method.encode, method, built.autocast, built.data, built.evaluation.shown)


def test_guesses_are_of_training_images_of_known_class_that_are_not_labelled(monkeypatch: pytest.MonkeyPatch):
    built = assemble(load_run(None, [*RUN, "method=fixmatch"]))
    train, seen = built.data.train, labelled_by(built)
    assert train.labels is not None
    train.labels[[*range(0, 300, 7)]] = -1
    kept = [place for place in range(300) if place not in seen and train.labels[place] >= 0]
    guesses = encoded(built).guesses
    assert guesses is not None
    assert guesses.targets().tolist() == train.labels[kept].tolist()
    (images,) = train.batches([torch.tensor(kept)])
    with torch.no_grad():
        expected = built.method.classify(built.loader.evaluation_view(images))
    torch.testing.assert_close(guesses.features, expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr("eagleray.runs.evaluation.SAMPLES", 20)
    few = encoded(assemble(load_run(None, [*RUN, "method=fixmatch"]))).guesses
    assert few is not None
    assert len(few) == 20


def test_where_all_images_are_labelled_nothing_is_guessed():
    built = assemble(load_run(None, [*RUN[:-2], "labels.fraction=1", "method=supervised"]))
    assert len(labelled_by(built)) == 300
    assert encoded(built).guesses is None
    measured = built.evaluation(built.method, built.autocast, final=True)
    assert not {"pseudo_precision", "pseudo_recall"} & set(measured)
    assert "ece" in measured


# in a run


@pytest.mark.parametrize("method", ["fixmatch", "supervised"])
def test_they_are_kept_with_their_images_and_sent_of_every_epoch(method: str, tmp_path: Path):
    settings = ["evaluate.protocols=[accuracy,balance,calibration,pseudo_labels]", "evaluate.pseudo_labels.threshold=0"]
    run = load_run(None, [*RUN, f"method={method}", *settings])
    record = Record.create(tmp_path / "run", name="r", experiment="e", params={}, run=run.file())
    for _ in recorded(train(run, record.directory), record):
        pass
    points = {(step, name) for step, name, *_ in Rows().read(record)}  # what MLflow is sent, and charts by their steps
    ends = [row["step"] for row in record.metrics()]
    assert len(ends) == 2
    assert {(step, name) for step in ends for name in {*OF_CLASSIFIER, "pseudo_precision"}} <= points
    with (record.artifacts / "evaluation.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert {"test_ece", "test_accuracy"} <= set(rows)
    assert not [name for name in rows if name.startswith("test_pseudo")], "they are of training images"
    assert rows["pseudo_recall"]["images"] == "270"
    assert rows["pseudo_precision"]["value"] == rows["pseudo_recall"]["value"]
    assert all(rows[name]["low"] for name in rows)
    assert (record.artifacts / "calibration.csv").read_text().startswith("above,up_to,images,confidence,right,low,high")


def test_only_what_is_asked_for_is_encoded(monkeypatch: pytest.MonkeyPatch):
    run = load_run(None, [*RUN, "method=fixmatch", "evaluate.protocols=[balance,calibration]", "evaluate.test=false"])
    built = assemble(run)
    seen = []
    encode = built.evaluation.encode
    monkeypatch.setattr(
        built.evaluation, "encode", lambda network, *rest: seen.append(network) or encode(network, *rest)
    )
    built.evaluation(built.method, built.autocast, final=True)
    assert seen == [built.method.classify], "once for both, and no features"
