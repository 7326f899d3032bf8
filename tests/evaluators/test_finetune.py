"""Fine-tuning as an evaluation: it is the method `finetune`, and leaves the run alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.config import Run, load_run
from eagleray.config.run import changed
from eagleray.contracts.errors import ConfigError
from eagleray.evaluators.finetune import Finetune
from eagleray.loop import train
from eagleray.runs.assemble import Assembly, assemble
from eagleray.runs.checkpoint import last_state
from eagleray.runs.preflight import check_run
from eagleray.runs.record import Record
from eagleray.runs.restore import restored
from eagleray.runs.writer import recorded

TINY = ["encoder.width=8", "data.limit=240", "batch_size=40", "threads=1", "device=cpu", "precision=fp32", "epochs=2"]
ALL = [
    "evaluate.finetune.when=end",
    "evaluate.finetune.labels=[all,10_percent,1_percent,few]",
    "evaluate.finetune.epochs=1",
]


def run_of(folder: Path, *settings: str) -> tuple[Run, Path]:
    """Train a run, and return it and its directory."""
    run = load_run(None, [*TINY, *settings])
    record = Record.create(folder, name=folder.name, experiment="e", params={}, run=run.file())
    for _ in recorded(train(run, record.directory), record):
        pass
    record.finish("finished")
    return run, record.directory


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    return run_of(tmp_path_factory.mktemp("runs") / "pretrained")


def measured(built: Assembly) -> dict[str, float]:
    return built.evaluation(built.method, built.autocast, final=True)


def evaluating(run: Run, **settings: Any) -> Run:
    values = {"when": "end", **settings}
    return changed(run, {f"evaluate.finetune.{name}": value for name, value in values.items()})


def test_it_is_the_method_finetune(pretrained: tuple[Run, Path], tmp_path: Path):
    run, directory = pretrained
    found = measured(restored(evaluating(run, labels=["all", "few"], epochs=8, lr=0.02), directory))
    for name, labels in {"fine_tuned": "labels.fraction=1", "fine_tuned_few": "labels.per_class=10"}.items():
        settings = ["method=finetune", f"encoder.run={directory}", "epochs=8", "optimizer.lr=0.02"]
        settings += ["method.classifier_lr=1", labels]
        base = [one for one in TINY if not one.startswith(("encoder", "epochs"))]
        by_method = load_run(None, [*base, *settings])
        record = Record.create(tmp_path / name, name=name, experiment="e", params={}, run=by_method.file())
        for _ in recorded(train(by_method, record.directory), record):
            pass
        assert record.summary["accuracy"] == found[name]
        assert record.summary["test_accuracy"] == found[f"test_{name}"]
    assert found["fine_tuned"] > 0.3  # ten classes


def test_each_kind_of_labels_is_a_training_of_its_own(pretrained: tuple[Run, Path]):
    run, directory = pretrained
    every = ["all", "10_percent", "1_percent", "few"]
    found = measured(restored(evaluating(run, labels=every, epochs=1, per_class=100), directory))
    assert set(Finetune.metrics) <= set(found)  # per_class is more than there are: the smallest class counts
    assert found == measured(restored(evaluating(run, labels=every, epochs=1, per_class=100), directory))
    one = measured(restored(evaluating(run, labels=["10_percent"], epochs=1), directory))
    assert set(Finetune.metrics) & set(one) == {"fine_tuned_10_percent"}
    assert one["fine_tuned_10_percent"] == found["fine_tuned_10_percent"]


def test_the_run_trains_as_if_nothing_were_evaluated(pretrained: tuple[Run, Path], tmp_path: Path):
    _, directory = run_of(tmp_path / "same", "evaluate.finetune.when=always", "evaluate.finetune.epochs=1")
    weights, before = (last_state(each)["method"] for each in (directory, pretrained[1]))
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_a_class_without_images_is_refused_before_anything_starts():
    few = ["data.limit=8", "batch_size=4"]
    check_run(load_run(None, few))
    with pytest.raises(ConfigError, match=r"evaluate\.finetune: train has no image of class '.' to train with"):
        check_run(load_run(None, [*few, "evaluate.finetune.when=end"]))


def test_a_floor_has_no_network_to_train():
    built = assemble(load_run(None, [*TINY, *ALL]))
    assert not set(Finetune.metrics) & set(
        built.evaluation.measure(built.method.eval().encode, built.autocast, test=False)
    )
