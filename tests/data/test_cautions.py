"""A choice by many more labels than the method has is cautioned, wherever the images are told of."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from command_line import command_line
from eagleray.app import line
from eagleray.config import Run, Sweep, load_run, validated
from eagleray.data.cautions import choosing
from eagleray.data.description import cautioned
from eagleray.runs.assemble import images_of
from eagleray.runs.preflight import caution_of, planned
from eagleray.runs.rehearsal import rehearse

FEW = {"method": "fixmatch", "labels": {"per_class": 2}, "encoder": {"width": 4}}
SAID = (
    "validation has 143 labelled images, for 20 labels to learn from: a choice by it knows more labels than the "
    "method; data.validation_per_class=2 is realistic"
)


@pytest.fixture
def eagleray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in an empty directory, without any server, in a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(line, "console", Console(width=400))
    return command_line(monkeypatch, capsys)


def test_the_sentence_names_a_realistic_number():
    assert choosing(40, 80, 10) == ""
    assert choosing(40, 1000, 10) == (
        "validation has 1,000 labelled images, for 40 labels to learn from: a choice by it knows more labels than the "
        "method; data.validation_per_class=4 is realistic"
    )


def test_it_is_said_of_runs_with_few_labels_alone():
    few = validated(Run, FEW)
    assert caution_of(few) == cautioned(images_of(few), few.labels) == SAID
    for enough in (["method=fixmatch"], [], ["method=fixmatch", "labels.per_class=2", "data.validation_per_class=2"]):
        run = load_run(None, enough)
        assert caution_of(run) == cautioned(images_of(run), run.labels) == ""


def test_a_sweep_says_it_once():
    sweep = validated(Sweep, {"name": "s", "run": FEW, "vary": {"method.threshold": [0.5, 0.9]}, "seeds": 2})
    read = rehearse(sweep, planned(sweep))
    assert read[1:] == [SAID]


def test_check_says_it_too(eagleray: Any):
    Path("run.yaml").write_text("{method: fixmatch, labels: {per_class: 2}}\n")
    outcome = eagleray("check", "run.yaml")
    assert outcome.out.splitlines()[-1] == SAID, outcome.err
    assert "to learn from" not in eagleray("check", "run.yaml", "labels.per_class=40").out


@pytest.mark.slow
def test_train_says_it_with_the_data(eagleray: Any):
    settings = ["method=fixmatch", "labels.per_class=2", "encoder.width=4", "batch_size=28", "steps=1", "threads=1"]
    outcome = eagleray("train", *settings, "device=cpu", "evaluate.linear.when=never")
    assert outcome.code == 0, outcome.err
    assert f"; {SAID}" in " ".join(outcome.out.split())
