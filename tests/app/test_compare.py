"""`compare` and `runs`, from directories alone."""

import csv
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from command_line import Outcome, command_line
from eagleray.app import line
from eagleray.app.commands import comparing, runs
from eagleray.app.conclude import conclude
from eagleray.config import load_run
from eagleray.contracts.files import JSON
from eagleray.runs.record import Record
from eagleray.tracking.sync_state import write_note
from recorded_runs import recorded_run, recorded_sweep


@pytest.fixture
def eagleray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in an empty directory, without any server, in a terminal of some width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")

    run = command_line(monkeypatch, capsys)

    def typed(*words: str, width: int = 100) -> Outcome:
        for module in (line, comparing, runs):
            monkeypatch.setattr(module, "console", Console(width=width))
        return run(*words)

    return typed


def at(place: str, created: int) -> Path:
    """Give a recorded run its time of start, in seconds since 1970."""
    path = Path(place) / "record.json"
    facts = {**json.loads(JSON.open(path.read_bytes())), "created": created * 1000}
    path.write_bytes(JSON.put(json.dumps(facts, indent=1)))
    return path.parent


# --- compare ---------------------------------------------------------------------------------------------------


def test_without_a_name_it_is_the_newest_sweep_of_all(eagleray: Any):
    recorded_sweep(Path("runs/s/1"))
    recorded_run(Path("runs/eagleray/x"), knn=0.5)
    at("runs/s/1", 100)
    recorded_sweep(Path("runs/t/1"), knn=lambda _: 0.1)
    outcome = eagleray("compare")
    assert outcome.code == 0, outcome.err
    assert outcome.out == eagleray("compare", "runs/t/1").out
    assert outcome.out == eagleray("compare", "tracking.runs=runs").out


def test_a_sweep_that_was_sent_has_a_link_to_its_page(eagleray: Any):
    recorded_sweep(Path("runs/s/1"))
    assert "browser" not in eagleray("compare").out
    write_note(Record.open("runs/s/1"), "http://127.0.0.1:1", {"page": "/experiments/7/runs?x=1"})
    assert "s/1 in a browser: http://127.0.0.1:1/#/experiments/7/runs?x=1" in eagleray("compare").out
    assert "browser" not in eagleray("compare", "tracking.uri=http://127.0.0.1:2").out  # it was not sent there


def test_one_sweep_is_compared_the_newest_by_default(eagleray: Any):
    recorded_sweep(Path("runs/s/1"), knn=lambda _: 0.1)
    at("runs/s/1", 100)
    recorded_sweep(Path("runs/s/2"))
    outcome = eagleray("compare", "runs/s")
    assert outcome.code == 0, outcome.err
    assert "note: runs/s has 2 sweeps; this is the newest sweep, s/2. By name: s/1" in outcome.out
    assert re.search(r"1 +002 +0\.2 +0 +0\.810 ± 0\.\d+ +2", outcome.out), outcome.out
    assert "0.100" not in outcome.out
    assert "augment.flip matters: " in outcome.out
    assert "0.100" in eagleray("compare", "s/1").out, "by the name under which it is listed"
    assert eagleray("compare", "runs/s", "runs/s").out == outcome.out, "a name typed twice is one"


def test_the_same_sweep_twice_is_no_more_evidence_than_once(eagleray: Any):
    """D1: copies became `means of 2 and 2`, and noise became a finding."""
    for name in ("1", "2"):
        recorded_sweep(Path(f"runs/s/{name}"), vary={"method.temperature": [0.1, 0.2]}, seeds=1)
    once, both = eagleray("compare", "runs/s/1").out, eagleray("compare", "runs/s/1", "runs/s/2").out
    assert "may be noise" in once
    assert "may be noise" in both
    assert "matters" not in both
    assert "000, 001 repeat the settings and the seed of another run, which counts once" in both
    assert "s/1 and s/2 have the same best point, s/1 001." in both


def test_other_epochs_are_no_second_seed(eagleray: Any):
    """D2: a point was the mean of a run of four epochs and one of a single epoch."""
    recorded_sweep(Path("runs/s/1"), run={"epochs": 4}, seeds=1, knn=lambda _: 0.8)
    recorded_sweep(Path("runs/s/2"), run={"epochs": 1}, seeds=1, knn=lambda _: 0.2)
    outcome = eagleray("compare", "runs/s/1", "runs/s/2")
    assert not re.search(r"^\d.* 0\.500", outcome.out, re.MULTILINE)
    assert "epochs" in outcome.out.splitlines()[0]
    assert "No finding over all: these runs differ in epochs, so their knn cannot be ranked." in outcome.out
    assert re.search(r"^s/1: ", outcome.out, re.MULTILINE)


def test_runs_outside_sweeps_show_what_differs_and_claim_nothing_across_data(eagleray: Any):
    """D2: three folders and budgets were ranked, and a key of theirs `came nearest`."""
    Path("images").mkdir()
    recorded_run(Path("runs/eagleray/a"), "method=simclr")
    recorded_run(Path("runs/eagleray/b"), "method=byol", "data=folder", "data.root=images", knn=0.9)
    outcome = eagleray("compare", "runs/eagleray", width=120)
    heads = outcome.out.splitlines()[2].split()
    assert heads[:4] == ["trial", "method", "data", "knn"]
    assert "note: method.name decides also method.temperature" in outcome.out
    assert "No finding over all: these runs differ in data.name" in outcome.out
    assert not re.search(r"^1 ", outcome.out, re.MULTILINE), "nothing is ranked"


def test_the_best_points_are_shown_and_the_rest_is_counted(eagleray: Any):
    temperatures = [round(0.05 + number / 100, 2) for number in range(30)]
    recorded_sweep(Path("runs/s/1"), knn=lambda point: 0.9 - point.number / 100, seeds=1,
                   vary={"method.temperature": temperatures})  # fmt: skip

    def shown(*more: str) -> list[str]:
        found = eagleray("compare", "runs/s", "--csv", "all.csv", *more)
        assert found.code == 0, found.err
        assert "raw pixels" in found.out, "a floor is shown always"
        assert len(Path("all.csv").read_text().splitlines()) == 1 + 30 + 1
        return re.findall(r"^ *\d+ +(\d{3}) ", found.out, re.MULTILINE)

    assert shown() == [f"{number:03d}" for number in range(20)]
    assert "10 more points are not shown: --top 0 shows all" in eagleray("compare", "runs/s").out
    assert shown("--top", "3") == ["000", "001", "002"]
    assert len(shown("--top", "0")) == 30
    assert "not shown" not in eagleray("compare", "runs/s", "--top", "30").out


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_column_is_cut_in_a_narrow_terminal(eagleray: Any, width: int):
    """D14: 28 columns were shown as `d… d… d…`, and even kNN as `0.…`."""
    for number, settings in enumerate((["method=simclr"], ["method=byol", "epochs=3"], ["method=mae"])):
        recorded_run(Path(f"runs/eagleray/20260101-12000{number}-x"), *settings, "batch_size=64", knn=0.5)
    outcome = eagleray("compare", "runs/eagleray", "--csv", "all.csv", width=width)
    assert outcome.code == 0, outcome.err
    assert "…" not in outcome.out
    assert "0.500" in outcome.out
    assert "byol" in outcome.out
    lines = list(csv.DictReader(Path("all.csv").read_text().splitlines()))
    assert [line["method.name"] for line in lines] == ["simclr", "byol", "mae"]
    assert {"encoder.width", "epochs", "optimizer.lr", "device", "evaluate.knn.k", "linear"} <= set(lines[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["nothing"], "MLflow at http://127.0.0.1:1 cannot be read", marks=pytest.mark.slow),
        (["tracking.runs=empty"], "there is no sweep in empty; name a sweep, an experiment or a directory"),
        (["empty"], "empty holds no runs"),
        (
            ["runs/s/1", "--csv", "nowhere/all.csv"],
            "--csv nowhere/all.csv cannot be written: No such file or directory",
        ),
        (["runs/s/1", "--metric", "knnn"], "no trial measured knnn; they measured knn, linear, loss"),
        (["s"], "The directories are here: eagleray compare runs/s"),
        (["runs/damaged/1"], "record.json is damaged"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(eagleray: Any, arguments: list[str], said: str):
    recorded_sweep(Path("runs/s/1"))
    Path("empty").mkdir()
    Path("runs/damaged/1").mkdir(parents=True)
    Path("runs/damaged/1/record.json").write_text("{")
    outcome = eagleray("compare", *arguments)
    assert outcome.code == 2
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1


# --- runs ------------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_with_what_one_wants_to_know(eagleray: Any):
    recorded_run(Path("runs/eagleray/a"), "method=byol", "epochs=3", knn=0.75)
    at("runs/eagleray/a", int(time.time()) - 7200)
    recorded_sweep(Path("runs/s/1"))
    sweep = Record.open("runs/s/1")
    sweep.finish("finished", summary={"knn": 0.81})
    outcome = eagleray("runs", "ls")
    assert outcome.code == 0, outcome.err
    head, first, second = (line.split() for line in outcome.out.splitlines())
    assert head == ["age", "run", "kind", "method", "data", "state", "epochs", "knn", "linear"]
    assert first[2:] == ["s/1", "sweep", "simclr", "digits", "finished", "8/8", "trials", "0.810"]
    assert second == ["2", "h", "eagleray/a", "run", "byol", "digits", "finished", "3/3", "0.750", "0.850"]
    assert [each.split()[2] for each in eagleray("runs", "ls", "--sweeps").out.splitlines()[1:]] == ["s/1"]
    everything = eagleray("runs", "ls", "--trials").out
    assert "s/1/trials/003-seed1" in everything
    assert "raw-pixels" in everything
    assert len(eagleray("runs", "ls", "runs/s").out.splitlines()) == 2


def test_what_is_damaged_or_half_written_is_named_and_hides_nothing(eagleray: Any):
    recorded_run(Path("runs/e/good"))
    for name in ("damaged", "status", "metrics"):
        shutil.copytree("runs/e/good", f"runs/e/{name}")
    Path("runs/e/damaged/record.json").write_text('{"key": ')
    Path("runs/e/status/status.json").write_bytes(b"\xff\x00")
    Path("runs/e/metrics/metrics.jsonl").write_bytes(b"\xff\x00 no line")
    Path("runs/e/half/artifacts").mkdir(parents=True)
    Path("runs/e/notes").mkdir()  # a person's own folder
    outcome = eagleray("runs", "ls")
    assert outcome.code == 0
    assert re.search(r"e/good .* 0\.800", outcome.out)
    reasons = {"damaged": "is damaged", "status": "status.json is damaged", "metrics": "metrics.jsonl is damaged",
               "half": "has no record.json"}  # fmt: skip
    for name, why in reasons.items():
        assert re.search(rf"^cannot be read: runs/e/{name}: .*{why}", outcome.out, re.MULTILINE), name
    assert "notes" not in outcome.out


def test_a_run_that_was_killed_is_said_to_be_silent(eagleray: Any):
    run = recorded_run(Path("runs/e/killed"))
    (run.directory / "status.json").unlink()
    assert re.search(r"running +10/10", eagleray("runs", "ls").out)
    for path in run.directory.iterdir():
        os.utime(path, (time.time() - 3 * 3600,) * 2)
    assert "running, silent for 3 h" in eagleray("runs", "ls").out


def test_a_run_is_shown_with_what_is_special_in_it(eagleray: Any):
    recorded_run(Path("runs/eagleray/a"), "method=byol", "method.momentum=0.5", "epochs=3")
    outcome = eagleray("runs", "show", "eagleray/a")
    assert outcome.code == 0, outcome.err
    shown = {words[0]: words[1:] for each in outcome.out.splitlines() if (words := each.split())}
    assert shown["runs/eagleray/a:"][:4] == ["run", "of", "eagleray,", "begun"]
    assert shown["method.momentum"] == ["0.5", str(load_run(None, ["method=byol"]).method.config.momentum)]
    assert shown["epochs"] == ["3", "10"]
    assert "batch_size" not in shown
    assert shown["knn"][:8] == ["0.800", "share", "of", "the", "images", "that", "a", "vote"]
    assert "runs/eagleray/a/metrics.jsonl" in shown


def test_a_run_of_a_method_that_is_not_here_is_shown_too(eagleray: Any):
    record = recorded_run(Path("runs/eagleray/a"))
    (record.directory / "run.yaml").write_text("method: {name: my_lab.gone}\n")
    outcome = eagleray("runs", "show", "runs/eagleray/a")
    assert outcome.code == 0, outcome.err
    assert "the defaults are unknown here" in outcome.out
    assert re.search(r"method\.name +simclr", outcome.out)


def test_a_sweep_is_shown_with_its_question_and_finding(eagleray: Any):
    sweep, parent = recorded_sweep(Path("runs/s/1"))
    conclude(sweep, parent)
    outcome = eagleray("runs", "show", "s/1")
    assert outcome.code == 0, outcome.err
    assert "question: Which?" in outcome.out
    assert "finding: augment.flip matters: " in outcome.out
    assert "its leaderboard: eagleray compare runs/s/1" in outcome.out


def test_the_best_run_is_found_by_the_metric_of_its_sweep(eagleray: Any):
    recorded_sweep(Path("runs/s/1"), metric="linear", knn=lambda point: 0.9 - 0.1 * point.number)
    at("runs/s/1", 100)
    recorded_sweep(Path("runs/s/2"))
    assert eagleray("runs", "best", "--path").out == "runs/s/2/trials/002-seed0\n"
    assert eagleray("runs", "best", "s", "--path").out == "runs/s/2/trials/002-seed0\n"
    assert eagleray("runs", "best", "s/1", "--path").out == "runs/s/1/trials/000-seed0\n"
    assert eagleray("runs", "best", "s/2", "--metric", "loss").err.startswith("eagleray: --metric loss is no goal: ")
    outcome = eagleray("runs", "best")
    assert "002 method.temperature=0.2 augment.flip=0: knn 0.810 ± 0." in outcome.out
    assert "eagleray train runs/s/2/trials/002-seed0/run.yaml epochs=200" in outcome.out


def test_the_best_run_of_steps_is_trained_longer_by_steps(eagleray: Any):
    recorded_run(Path("runs/eagleray/a"), "steps=50")
    (Path("runs/eagleray/a/status.json")).unlink()
    assert re.search(r"running +0/\?$", eagleray("runs", "ls").out, re.MULTILINE), "of unknown images"
    assert "eagleray train runs/eagleray/a/run.yaml steps=100" in eagleray("runs", "best").out


def test_the_best_of_runs_on_different_images_is_not_named(eagleray: Any):
    Path("images").mkdir()
    recorded_run(Path("runs/eagleray/a"))
    recorded_run(Path("runs/eagleray/b"), "epochs=20", knn=0.9)
    assert eagleray("runs", "best", "--path").out == "runs/eagleray/b\n", "a longer run may be the better one"
    recorded_run(Path("runs/eagleray/c"), "data=folder", "data.root=images")
    outcome = eagleray("runs", "best")
    assert outcome.code == 2
    assert "differ in data.name" in outcome.err


@pytest.mark.slow
def test_the_best_trial_is_trained_longer_as_an_ordinary_run(eagleray: Any):
    """D14: the long run landed in the sweep's experiment, without numbers on the test set."""
    tiny = {"data": {"limit": 64}, "batch_size": 16, "epochs": 1, "encoder": {"width": 4, "depth": 2}}
    recorded_sweep(Path("runs/s/1"), run=tiny, cpus_per_trial=1)
    best = eagleray("runs", "best", "s", "--path").out.strip()
    outcome = eagleray("train", f"{best}/run.yaml", "epochs=2", "threads=1")
    assert outcome.code == 0, outcome.err
    (long,) = Path("runs/eagleray").iterdir()
    record = Record.open(long)
    assert (record.experiment, record.params["epochs"], record.params["method.temperature"]) == ("eagleray", 2, 0.2)
    assert {"test_knn", "test_linear"} <= set(record.summary)
    assert [path.name for path in Path("runs/s").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ls"], "there is no folder runs; name the one that contains the runs"),
        (["show", "nothing"], "nothing is not the directory of a run"),
        (["best", "nothing"], "there is no directory nothing"),
        (["best"], "there is no directory runs"),
    ],
)
def test_runs_that_are_not_there_are_said_in_one_sentence(eagleray: Any, arguments: list[str], said: str):
    outcome = eagleray("runs", *arguments)
    assert outcome.code == 2
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1
