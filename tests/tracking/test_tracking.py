"""Against a real SQLite store, and a real MLflow server on it; what arrived is read from the database itself."""

import contextlib
import dataclasses
import functools
import gc
import json
import math
import os
import platform
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from eagleray import tracking
from eagleray.contracts.errors import ConfigError
from eagleray.report.analysis import analyse
from eagleray.report.recorded import from_mlflow
from eagleray.report.text import csv_text
from eagleray.report.trials import compared, group_of, of_sweep
from eagleray.runs.record import SYSTEM, Record
from eagleray.tracking import Sender, Sent, Unsent, is_sent, read, rows, send_again, sync, sync_all
from eagleray.tracking import sender as sender_module
from eagleray.tracking.send import Destination
from eagleray.tracking.store import connect, patient
from recorded_runs import recorded_sweep

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Database:
    path: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.path}"

    def query(self, sql: str, *values) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(sql, values).fetchall()

    def run(self, record: Record) -> str:
        """Return the one active run of this record."""
        found = self.query(
            "select r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'eagleray.key' and t.value = ? and r.lifecycle_stage = 'active'",
            record.key,
        )
        assert len(found) == 1
        return found[0][0]

    def pairs(self, table: str, record: Record) -> dict[str, str]:
        return dict(self.query(f"select key, value from {table} where run_uuid = ?", self.run(record)))

    def points(self, record: Record) -> list[tuple]:
        """Return (metric, step, value) of every stored point, twice if it is stored twice."""
        return self.query(
            "select key, step, value from metrics where run_uuid = ? order by key, step", self.run(record)
        )

    def status(self, record: Record) -> str:
        return self.query("select status from runs where run_uuid = ?", self.run(record))[0][0]


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Database:
    """Return a store in a folder with a space in its name, created by the first record sent to it."""
    found = Database(tmp_path_factory.mktemp("a store") / "mlflow.db")
    result = sync(make(tmp_path_factory.mktemp("first")), found.uri)
    assert isinstance(result, Sent), result
    return found


def make(directory: Path, **changes) -> Record:
    facts = {"name": "run", "experiment": directory.name, "params": {}, "run": {"seed": 1}}
    return Record.create(directory, **{**facts, **changes})


def report(record: Record, steps: range, offset: float = 0.0) -> None:
    for step in steps:
        record.append(step, {"loss": 1 / step + offset, "knn": step / 1000 + offset})


def expected(steps: range) -> list[tuple]:
    return [("knn", s, s / 1000) for s in steps] + [("loss", s, 1 / s) for s in steps]


def eventually(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_what_is_found_later_of_a_run_follows_it_to_its_store(tmp_path, database):
    record = make(tmp_path, uri=database.uri)
    record.finish("finished")
    assert send_again(record) is None, "it was never sent"
    assert isinstance(sync(record, database.uri), Sent)
    assert send_again(record) is None, "nothing is new"
    (record.artifacts / "evaluation.csv").write_text("metric,value\n")
    assert send_again(record) == Sent(points=0, files=1, new=True)
    assert [*(database.path.parent / "mlartifacts").rglob("evaluation.csv")]


# What arrives --------------------------------------------------------------------------------------------------


def test_a_sweep_arrives_with_all_it_is(tmp_path, database):
    sweep = make(tmp_path, name="the sweep", tags={"mlflow.note.content": "Which temperature?"})
    for index, state in enumerate(["finished", "stopped", "collapsed", "failed"]):
        params = {"temperature": 0.1 * (index + 1), "batch": 64, "flip": True, "only": ["crop", "jitter"], "x": None}
        trial = make(
            tmp_path / f"trials/{index}", name=f"t{index}", experiment=sweep.experiment, params=params, parent=sweep
        )
        report(trial, range(1, 4))
        (trial.artifacts / "encoder").mkdir()
        (trial.artifacts / "encoder/weights.safetensors").write_bytes(b"1234")
        Image.new("RGB", (40, 30), "red").save(trial.artifacts / "views.png")
        (trial.artifacts / ".half.png").write_bytes(b"p")
        trial.finish(state, f"it {state}", {"knn": 0.003, "linear": 0.9})
    going = make(tmp_path / "trials/4", experiment=sweep.experiment, parent=sweep)
    sweep.finish("finished")

    result = sync_all(tmp_path, database.uri)
    assert (result.sent, result.already, result.unsent) == (6, 0, {})

    children = sweep.children()
    statuses = ["FINISHED", "KILLED", "KILLED", "FAILED", "RUNNING"]
    assert [database.status(child) for child in children] == statuses
    for child in children:
        assert database.pairs("tags", child)["mlflow.parentRunId"] == database.run(sweep)
    assert "mlflow.parentRunId" not in database.pairs("tags", sweep)
    assert database.pairs("tags", sweep)["mlflow.note.content"] == "Which temperature?"

    trial = children[2]
    assert database.pairs("params", trial) == {
        "temperature": "0.3",  # and not 0.30000000000000004
        "batch": "64",
        "flip": "true",
        "only": "[crop, jitter]",
        "x": "none",
    }
    assert database.points(trial) == sorted([*expected(range(1, 4)), ("linear", 3, 0.9)])
    tags = database.pairs("tags", trial)
    assert tags["eagleray.state"] == "collapsed"
    assert tags["eagleray.message"] == "it collapsed"
    assert tags["environment.torch"] == trial.environment["torch"]
    assert tags["environment.cores"] == str(trial.environment["cores"])
    assert tags.get("mlflow.source.git.commit") == trial.environment["commit"]

    sql = "select name, start_time, end_time, artifact_uri, experiment_id from runs where run_uuid = ?"
    ((name, start, end, place, experiment),) = database.query(sql, database.run(trial))
    assert (name, start, end) == ("t2", trial.created, trial.status["time"])
    folder = Path(unquote(urlsplit(place).path))
    assert folder.is_relative_to(database.path.parent / "mlartifacts")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    grid = f"images/views+step+0+timestamp+{trial.created}+{trial.key}"
    pictures = {f"{grid}.png", f"{grid}+compressed.webp"}
    assert found == {"run.yaml", "views.png", "encoder/weights.safetensors", *pictures}
    for name in pictures:
        with Image.open(folder / name) as picture:
            assert picture.size == (40, 30)
    assert tags["mlflow.loggedImages"] == "True"
    assert (folder / "run.yaml").read_text() == (trial.directory / "run.yaml").read_text()
    assert database.query("select name from experiments where experiment_id = ?", experiment) == [(tmp_path.name,)]
    assert going.state == "running"


def test_points_come_with_their_own_times(tmp_path, database):
    record = make(tmp_path)
    report(record, range(1, 3))
    sync(record, database.uri)
    sql = "select step, timestamp from metrics where run_uuid = ? and key = 'loss' order by step"
    assert database.query(sql, database.run(record)) == [(row["step"], row["time"]) for row in record.metrics()]


def test_numbers_that_break_charts_are_left_out_and_counted(tmp_path, database):
    record = make(tmp_path)
    record.append(1, {"loss": 1.0, "knn": math.nan})
    record.append(2, {"loss": math.inf, "knn": -math.inf})
    record.append(3, {"loss": 0.5})
    sync(record, database.uri)
    assert database.points(record) == [("loss", 1, 1.0), ("loss", 3, 0.5), ("nonfinite", 1, 1.0), ("nonfinite", 2, 3.0)]


def test_the_numbers_a_run_ends_with_are_the_last_of_their_metrics(tmp_path, database):
    record = make(tmp_path)
    report(record, range(1, 3))
    record.finish("finished", summary={"knn": 0.002, "loss": 0.25, "linear": 0.5, "bad": math.nan})
    for _ in range(2):
        sync(record, database.uri)
        assert database.points(record) == sorted([*expected(range(1, 3)), ("linear", 2, 0.5), ("loss", 3, 0.25)])


def test_names_that_mlflow_refuses_do_not_cost_the_others(tmp_path, database):
    record = make(tmp_path, params={"a(b)": "x" * 9000, "": 1}, tags={"t,": "y" * 9000})
    record.append(1, {"loss (α)": 1.0, "knn@20": 0.5})
    assert isinstance(sync(record, database.uri), Unsent)  # an empty name stays refused
    record = make(tmp_path, params={"a(b)": "x" * 9000}, tags={"t,": "y" * 9000})
    assert isinstance(sync(record, database.uri), Sent)
    assert isinstance(sync(record.tag({"more": "1"}), database.uri), Sent)  # nor do cut texts seem changed
    assert database.points(record) == [("knn_20", 1, 0.5), ("loss _α_", 1, 1.0)]
    assert not [name for name in database.pairs("tags", record) if name.startswith("resumed")]


def make_sweep(directory: Path, **changes) -> Record:
    file = {"question": "Which?", "vary": {"t": [1, 2]}, "metric": "knn", "mode": "max", "floor": ["random"], **changes}
    return make(directory, name="which", experiment="which", run=file, tags={"kind": "sweep"})


def make_child(sweep: Record, name: str, seed: int, knn: float, tags: dict[str, str], encoder: str = "a") -> Record:
    facts = {"data": {"name": "digits"}, "image_size": 8, "encoder": {"name": encoder}, "seed": seed}
    place = sweep.directory / "trials" / name
    child = make(place, name=name, experiment="which", params={"seed": seed}, run=facts, parent=sweep, tags=tags)
    child.append(1, {"knn": knn})
    child.finish("finished", summary={"knn": knn})
    return child


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_a_trial_is_compared_with_the_floor_of_its_seed_and_encoder(tmp_path, database, mode, sign):
    sweep = make_sweep(tmp_path / mode, mode=mode, floor=["random", "pixels"])
    floor = {"kind": "floor", "floor": "random", "point": "random init"}
    for seed, knn in enumerate([0.25, 0.5]):
        make_child(sweep, f"a{seed}", seed, knn, floor)
        make_child(sweep, f"b{seed}", seed, knn + 0.125, floor, "b")
    trials = [make_child(sweep, f"t{seed}", seed, 0.75, {"kind": "trial"}, "b") for seed in (0, 1)]
    sync_all(sweep.directory, database.uri)
    assert [name for trial in trials for name, *_ in database.points(trial)] == [
        "knn",
        "knn",
    ]  # floors may be unfinished
    sweep.finish("finished")
    for _ in range(2):
        sync_all(sweep.directory, database.uri)
        gains = [{name: value for name, _, value in database.points(trial)} for trial in trials]
        assert gains == [{"knn": 0.75, "knn_above_random": sign * each} for each in (0.375, 0.125)]


def test_a_metric_that_floors_cannot_measure_keeps_no_trial_from_arriving(tmp_path, database):
    sweep = make_sweep(tmp_path / "s", metric="accuracy")
    make_child(sweep, "floor", 0, 0.25, {"kind": "floor", "floor": "random", "point": "random init"})
    trial = make_child(sweep, "trial", 0, 0.5, {"kind": "trial"})
    trial.finish("finished", summary={"accuracy": 0.75})
    sweep.finish("finished")
    assert sync_all(sweep.directory, database.uri).unsent == {}
    assert {name: value for name, _, value in database.points(trial)} == {"knn": 0.5, "accuracy": 0.75}


def test_the_page_of_an_experiment_is_that_of_its_newest_sweep_and_keeps_what_a_person_wrote(tmp_path, database):
    from mlflow import MlflowClient

    old, new = make_sweep(tmp_path / "old", question="Old?"), make_sweep(tmp_path / "new", question="New?")
    new = dataclasses.replace(new, created=old.created + 1000)
    destination = Destination(database.uri)
    for record in (new, old):  # `eagleray sync` may send the older one later
        assert isinstance(destination.send(record), Sent)
    client = MlflowClient(database.uri)

    def page() -> Any:
        found = client.get_experiment_by_name("which")
        assert found is not None
        return found

    assert page().tags["mlflow.note.content"].startswith("New?\n\nwhich/new: [runs](#/experiments/")
    views = [json.loads(page().tags[f"mlflow.sharedViewState.{each.key[:8]}"]) for each in (old, new)]
    searches = [f"tags.`mlflow.parentRunId` = '{database.run(each)}'" for each in (old, new)]
    assert [view["searchFilter"] for view in views] == searches
    assert (views[0]["orderByKey"], views[0]["orderByAsc"]) == ("metrics.`knn`", False)
    assert views[0]["selectedColumns"][:4] == [
        "metrics.`knn`",
        "metrics.`knn_above_random`",
        "params.`t`",
        "params.`seed`",
    ]

    assert "metrics.`participation`" not in views[1]["selectedColumns"]
    new = new.tag({"headlines": "knn participation"})  # of an evaluator of the user's own
    destination.send(new)
    columns = json.loads(page().tags[f"mlflow.sharedViewState.{new.key[:8]}"])["selectedColumns"]
    assert columns.index("metrics.`linear`") < columns.index("metrics.`participation`")
    assert columns.count("metrics.`knn`") == 1
    run = make(tmp_path / "alone", experiment="which", tags={"headlines": "knn participation"})
    destination.send(run)
    columns = json.loads(page().tags["mlflow.sharedViewState.runs"])["selectedColumns"]
    assert columns.index("metrics.`participation`") < columns.index("metrics.`loss`")

    new = new.tag({"finding": "t matters."})
    destination.send(new)
    assert "**t matters.**" in page().tags["mlflow.note.content"]
    assert database.pairs("tags", new)["mlflow.note.content"] == "New?\n\n**t matters.**"
    client.set_experiment_tag(page().experiment_id, "mlflow.note.content", "mine")
    client.set_tag(database.run(new), "mlflow.note.content", "mine too")
    Destination(database.uri).send(new.tag({"finding": "nothing matters."}))
    assert page().tags["mlflow.note.content"] == "mine"
    assert database.pairs("tags", new)["mlflow.note.content"] == "mine too"


def test_a_data_set_and_what_the_machine_did_arrive_once(tmp_path, database):
    record = make(tmp_path)
    facts = {"images": {"train": 5}, "classes": None, "size": 8, "channels": 3, "skipped": 1}
    record.keep_data({"name": "folder", "digest": "0a1b", "source": {"root": "/photos"}, **facts})
    record.append(3, {"loss": 0.5}, 1)
    record.append(3, {"system/memory_megabytes": 12.0}, 1, file=SYSTEM)
    for _ in range(2):
        (record.directory / "sent.json").unlink(missing_ok=True)
        assert isinstance(sync(record, database.uri), Sent)
        sql = (
            "select name, digest, dataset_source, dataset_profile from datasets "
            "join inputs on source_id = dataset_uuid where destination_id = ?"
        )
        ((name, digest, source, profile),) = database.query(sql, database.run(record))
        assert (name, digest, json.loads(source)["uri"], json.loads(profile)) == ("folder", "0a1b", "/photos", facts)
        assert database.points(record) == [("loss", 3, 0.5), ("system/memory_megabytes", 3, 12.0)]
    assert [from_mlflow(row).images for row in rows(tmp_path.name, database.uri)] == ["0a1b"]


@pytest.mark.parametrize("method", ["create_logged_model", "create_registered_model"])
def test_a_store_without_models_gets_all_else_and_it_is_said(tmp_path, monkeypatch, method):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def unknown(*_, **__):
        raise MlflowException("404: there is no such endpoint", error_code=5)  # RESOURCE_DOES_NOT_EXIST

    sweep = make_sweep(tmp_path / "runs/which/1")
    best = make_child(sweep, "t", 0, 0.75, {"kind": "trial", "winner": "yes"})
    for name in ("load_encoder.py", "encoder.safetensors"):
        (best.artifacts / name).write_text("")
    sweep.finish("finished")
    database = Database(tmp_path / "mlflow.db")
    monkeypatch.setattr(MlflowClient, method, unknown)
    monkeypatch.setattr("eagleray.tracking.models._saved", lambda *arguments: arguments[0].artifacts)
    done = sync_all(tmp_path / "runs", database.uri)
    assert (done.sent, done.unsent) == (2, {})
    assert len(done.lacks) == 1
    assert done.lacks[0].endswith("the best encoder as a model: 404: there is no such endpoint.") == (method[7] == "l")
    assert database.status(best) == "FINISHED"


# Nothing twice -------------------------------------------------------------------------------------------------


def test_sending_again_sends_what_has_come_since(tmp_path, database):
    record = make(tmp_path)
    report(record, range(1, 4))
    destination = Destination(database.uri)
    assert destination.send(record) == Sent(points=6, files=1, new=True)
    assert destination.send(record) == sync(record, database.uri) == Sent()
    assert is_sent(record, database.uri)

    report(record, range(4, 6))
    assert not is_sent(record, database.uri)
    assert sync(record, database.uri) == Sent(points=4, files=0, new=True)  # as another process
    report(record, range(6, 7))
    assert destination.send(record) == Sent(points=2, files=0, new=True)
    (record.directory / "sent.json").unlink()
    report(record, range(7, 8))
    assert destination.send(record) == Sent(points=2, files=1, new=True)
    assert database.points(record) == expected(range(1, 8))


def test_a_step_reported_again_is_not_counted_twice(tmp_path, database):
    record = make(tmp_path)
    report(record, range(1, 5))
    destination = Destination(database.uri)
    destination.send(record)
    report(record, range(3, 7), offset=0.5)  # workers restarted from the checkpoint of step 2
    destination.send(record)
    arrived = {(name, step): value for name, step, value in database.points(record)}
    assert len(arrived) == len(database.points(record)) == 12
    assert arrived["knn", 4] == 0.004  # it was there, and MLflow's points cannot be replaced
    assert arrived["knn", 5] == 0.505

    unsent = make(tmp_path / "b", experiment=record.experiment)
    report(unsent, range(1, 5))
    report(unsent, range(3, 5), offset=0.5)
    sync(unsent, database.uri)
    assert [value for name, _, value in database.points(unsent) if name == "knn"] == [0.001, 0.002, 0.503, 0.504]


@pytest.mark.parametrize("done", [True, False], ids=["carried out", "not carried out"])
@pytest.mark.parametrize("method", ["create_run", "log_batch", "log_artifact", "set_terminated"])
@pytest.mark.parametrize("lost", [True, False], ids=["sent.json lost", "sent.json kept"])
def test_a_crash_at_any_call_leaves_nothing_twice_and_nothing_out(tmp_path, database, monkeypatch, method, done, lost):
    from mlflow import MlflowClient

    record = make(tmp_path, params={"seed": 1})
    if method != "create_run":
        sync(record, database.uri)
    report(record, range(1, 601))  # two batches
    record.finish("finished")
    call, batches = getattr(MlflowClient, method), []

    def crash(self, *arguments, **names):
        batches.extend(names.get("metrics", []))
        if method == "log_batch" and len(batches) <= 1000:
            return call(self, *arguments, **names)
        if done:
            call(self, *arguments, **names)
        raise SystemExit  # not even an error that could be caught: the process is gone

    (record.artifacts / "a.txt").write_text("a")
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, method, crash)
        with pytest.raises(SystemExit):
            sync(record, database.uri)
    if lost:
        (record.directory / "sent.json").unlink(missing_ok=True)
    report(record, range(550, 603), offset=0.5)  # meanwhile the workers started again

    assert isinstance(sync(record, database.uri), Sent)
    points = database.points(record)
    assert [(name, step) for name, step, _ in points] == [(name, step) for name, step, _ in expected(range(1, 603))]
    assert database.status(record) == "FINISHED"
    assert database.pairs("params", record) == {"seed": "1"}


def test_a_crash_before_the_note_leaves_nothing_twice(tmp_path, database, monkeypatch):
    def crash(*_):
        raise SystemExit

    record = make(tmp_path)
    for end in (4, 7):
        report(record, range(end - 3, end))
        with monkeypatch.context() as patched:
            patched.setattr("eagleray.tracking.send.write_note", crash)
            with pytest.raises(SystemExit):
                sync(record, database.uri)
    assert not is_sent(record, database.uri)
    assert sync(record, database.uri) == Sent(points=0, files=1, new=True)
    assert database.points(record) == expected(range(1, 7))


def make_many(directory: Path, count: int) -> list[Record]:
    records = [make(directory / f"runs/e/{n}", experiment=directory.name, params={"seed": n}) for n in range(count)]
    for record in records:
        report(record, range(1, 4))
        record.finish("finished", summary={"linear": 0.5})
    return records


def complete() -> list[tuple]:
    return sorted([*expected(range(1, 4)), ("linear", 3, 0.5)])


@pytest.mark.parametrize("count", [2, 8])
def test_nothing_to_do_takes_as_few_questions_for_many_runs_as_for_two(tmp_path, database, monkeypatch, count):
    make_many(tmp_path, count)
    assert sync_all(tmp_path / "runs", database.uri).sent == count
    asked = calls(monkeypatch)
    assert sync_all(tmp_path / "runs", database.uri).already == count
    assert asked == ["get_experiment_by_name", "get_experiment"]


def calls(monkeypatch) -> list[str]:
    """Return the list that the names of all calls of MLflow's client are added to."""
    from mlflow import MlflowClient

    made: list[str] = []

    def noted(name: str, method: Callable) -> Callable:
        def call(self, *arguments, **names):
            made.append(name)
            return method(self, *arguments, **names)

        return call

    for name, method in vars(MlflowClient).items():
        if callable(method) and not name.startswith("_"):
            monkeypatch.setattr(MlflowClient, name, noted(name, method))
    return made


def test_a_short_run_is_sent_in_one_call_beside_its_files(tmp_path, database, monkeypatch):
    (record,) = make_many(tmp_path, 1)
    asked = calls(monkeypatch)
    assert isinstance(sync(record, database.uri), Sent)
    assert asked.count("log_batch") == 1
    assert not [name for name in asked if "history" in name]
    assert database.points(record) == complete()


def copied(source: Path, target: Path) -> None:
    """Copy a store over another; MLflow keeps files open, so it is not enough to replace them."""
    with contextlib.closing(sqlite3.connect(source)) as here, contextlib.closing(sqlite3.connect(target)) as there:
        here.backup(there)


def test_a_store_that_was_replaced_gets_everything(tmp_path):
    here, empty = Database(tmp_path / "mlflow.db"), tmp_path / "empty.db"
    connect(here.uri)
    copied(here.path, empty)
    records = make_many(tmp_path, 3)
    sync_all(tmp_path / "runs", here.uri)
    copied(empty, here.path)
    shutil.rmtree(tmp_path / "mlartifacts")
    assert all(is_sent(record, here.uri) for record in records), "the notes say that all was sent"
    assert sync_all(tmp_path / "runs", here.uri).sent == 3
    assert [here.points(record) for record in records] == [complete()] * 3
    assert len([*(tmp_path / "mlartifacts").rglob("run.yaml")]) == 3


def test_a_store_restored_from_an_older_copy_gets_what_it_has_lost_once(tmp_path):
    here, copy = Database(tmp_path / "mlflow.db"), tmp_path / "copy.db"
    untouched, longer = (make(tmp_path / f"runs/e/{name}", experiment=tmp_path.name) for name in "ab")
    for record in (untouched, longer):
        report(record, range(1, 4))
    untouched.finish("finished")
    sync_all(tmp_path / "runs", here.uri)
    copied(here.path, copy)

    report(longer, range(4, 700))
    (longer.artifacts / "a.txt").write_text("text")
    longer.finish("finished")
    late = make(tmp_path / "runs/e/c", experiment=tmp_path.name)
    report(late, range(1, 3))
    sync_all(tmp_path / "runs", here.uri)
    records = (untouched, longer, late)
    assert [len(here.points(record)) for record in records] == [6, 2 * 699, 4]
    for artifact in (tmp_path / "mlartifacts").rglob("a.txt"):
        artifact.unlink()
    copied(copy, here.path)
    assert all(is_sent(record, here.uri) for record in records)

    done = sync_all(tmp_path / "runs", here.uri)
    assert (done.sent, done.already, done.unsent) == (2, 1, {})
    assert here.points(longer) == expected(range(1, 700))
    assert here.points(late) == expected(range(1, 3))
    assert here.status(longer) == "FINISHED"
    assert len([*(tmp_path / "mlartifacts").rglob("a.txt")]) == 1
    assert sync_all(tmp_path / "runs", here.uri).already == 3


def test_a_resumed_run_continues_its_own_run(tmp_path, database):
    record = make(tmp_path, params={"epochs": 10, "seed": 1})
    report(record, range(1, 3))
    record.finish("failed", "out of memory")
    sync(record, database.uri)
    assert database.status(record) == "FAILED"

    again = make(tmp_path, params={"epochs": 20, "seed": 1, "added": 1})
    sync(again, database.uri)
    assert database.status(again) == "RUNNING"
    tags = database.pairs("tags", again)
    assert (tags["eagleray.state"], tags["eagleray.message"]) == ("running", "")
    assert tags["resumed.epochs"] == "20"
    assert "resumed.seed" not in tags
    assert database.pairs("params", again) == {"epochs": "10", "seed": "1", "added": "1"}  # MLflow never changes params
    assert rows(tmp_path.name, database.uri)[0]["params"] == {"epochs": "20", "seed": "1", "added": "1"}

    back = make(tmp_path, params={"epochs": 10, "seed": 1, "added": 1})
    report(back, range(3, 4))
    back.finish("finished")
    sync(back, database.uri)
    assert rows(tmp_path.name, database.uri)[0]["params"] == {"epochs": "10", "seed": "1", "added": "1"}
    assert (database.status(back), database.points(back)) == ("FINISHED", expected(range(1, 4)))


def test_a_request_carried_out_late_leaves_no_twin(tmp_path, database):
    from mlflow import MlflowClient

    record = make(tmp_path)
    report(record, range(1, 3))
    sync(record, database.uri)
    ours = database.run(record)
    client = MlflowClient(database.uri)
    experiment = client.get_experiment_by_name(record.experiment)
    assert experiment is not None
    client.create_run(experiment.experiment_id, tags={"eagleray.key": record.key})
    record.finish("finished")
    sync(record, database.uri)
    assert database.run(record) == ours  # the only active one
    assert database.points(record) == expected(range(1, 3))


def test_what_a_person_put_into_the_trash_stays_there(tmp_path, database):
    from mlflow import MlflowClient

    record = make(tmp_path)
    sync(record, database.uri)
    run = database.run(record)
    MlflowClient(database.uri).delete_run(run)
    report(record, range(1, 3))
    assert sync(record, database.uri) == Sent()
    assert is_sent(record, database.uri)
    assert database.query("select count(*) from metrics where run_uuid = ?", run) == [(0,)]

    experiment = MlflowClient(database.uri).get_experiment_by_name(record.experiment)
    assert experiment is not None
    MlflowClient(database.uri).delete_experiment(experiment.experiment_id)
    other = sync(make(tmp_path / "b", experiment=record.experiment), database.uri)
    assert isinstance(other, Unsent)
    assert "trash" in other.reason


def test_two_drivers_may_make_one_fresh_store(tmp_path):
    program = (
        "import sys\nfrom eagleray.runs.record import Record\nfrom eagleray.tracking import sync\n"
        "record = Record.create(sys.argv[1], name='x', experiment='e', params={}, run={})\n"
        "print(sync(record, sys.argv[2]))"
    )
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    command = [sys.executable, "-c", program]
    drivers = [
        subprocess.Popen([*command, str(tmp_path / name), uri], stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    for driver in drivers:
        assert driver.communicate(timeout=120)[0] == "Sent(points=0, files=1, new=True)\n"
    assert len(rows("e", uri)) == 2
    assert len(Database(tmp_path / "new/mlflow.db").query("select * from experiments where name = 'e'")) == 1


def test_runs_are_read_without_the_garbage_collector_which_goes_on_afterwards(tmp_path, database, monkeypatch):
    record, seen = make(tmp_path), []
    sync(record, database.uri)

    def noted(uri: str):
        seen.append(gc.isenabled())
        return connect(uri)

    monkeypatch.setattr(read, "connect", noted)
    assert len(rows(record.experiment, database.uri)) == 1
    assert (seen, gc.isenabled()) == ([False], True)


# The sender ----------------------------------------------------------------------------------------------------


def test_the_sender_sends_while_runs_train_and_says_nothing_at_the_end(tmp_path, database):
    sweep = make(tmp_path, name="sweep")
    with Sender(database.uri, every=0.05) as sender:
        sender.add(sweep)
        eventually(lambda: is_sent(sweep, database.uri))
        trial = make(tmp_path / "trials/0", experiment=sweep.experiment, parent=sweep)
        report(trial, range(1, 3))
        eventually(lambda: is_sent(trial, database.uri))
        assert database.points(trial) == expected(range(1, 3))
        assert database.status(trial) == "RUNNING"
        trial.finish("stopped")  # said by the driver: the trial itself was killed
    assert sender.message is None
    assert database.status(trial) == "KILLED"
    assert not [thread for thread in threading.enumerate() if thread.name == "eagleray-sender"]


def test_the_sender_opens_what_has_changed_alone(tmp_path, database, monkeypatch):
    """Opening a thousand records every two seconds took a third of a core."""
    sweep = make(tmp_path, name="sweep")
    trials = [make(tmp_path / f"trials/{n}", experiment=sweep.experiment, parent=sweep) for n in range(5)]
    for trial in trials[1:]:
        trial.finish("finished")
    opened, original = [], sender_module.sound

    def noted(directories):
        opened.extend(directory.name for directory in directories)
        return original(directories)

    monkeypatch.setattr(sender_module, "sound", noted)
    with Sender(database.uri, every=0.02) as sender:
        sender.add(sweep)
        eventually(lambda: all(is_sent(record, database.uri) for record in (sweep, *trials)))
        eventually(lambda: not opened.clear() and (time.sleep(0.2), not opened)[1])
        report(trials[0], range(1, 3))
        eventually(lambda: is_sent(trials[0], database.uri))
        assert set(opened) == {"0"}
        trials[2].tag({"winner": "yes"})
        eventually(lambda: "winner" in database.pairs("tags", trials[2]))
        sweep.finish("finished")  # from now on trials are compared with the floors
        eventually(lambda: set(opened) == {"0", "1", "2", "3", "4"})
    assert database.points(trials[0]) == expected(range(1, 3))


def test_a_run_that_the_store_refuses_does_not_delay_the_others(tmp_path, database):
    refused = make(tmp_path / "a", params={"": 1}, experiment=tmp_path.name)
    gone = make(tmp_path / "b", experiment=tmp_path.name)
    good = make(tmp_path / "c", experiment=tmp_path.name)
    sender = Sender(database.uri, every=0.05)
    for record in (refused, gone, good):
        sender.add(record)
    (gone.directory / "record.json").unlink()
    message = sender.close()
    assert is_sent(good, database.uri)
    assert message is not None
    assert message.startswith("1 run is not yet completely in MLflow")
    assert "eagleray sync" in message


def test_a_run_to_which_the_store_does_not_answer_does_not_delay_the_others(tmp_path, monkeypatch):
    records = [make(tmp_path / name) for name in "abc"]
    tried = []

    def send(_, record):
        tried.append(record.directory.name)
        return Unsent("500", answered=False) if record.directory.name == "a" else Sent()

    monkeypatch.setattr(Destination, "send", send)
    with Sender("http://nowhere", every=0.01) as sender:
        for record in records:
            sender.add(record)
        eventually(lambda: {"b", "c"} <= set(tried))
        assert set(sender.troubles) == {records[0].key}


def test_closing_waits_for_no_pause_between_attempts(tmp_path, database):
    with Sender(database.uri, every=50) as sender:
        time.sleep(0.2)  # by now the thread waits for its next turn
        record = make(tmp_path)
        sender.add(record)
        start = time.monotonic()
    assert time.monotonic() - start < 10
    assert is_sent(record, database.uri)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Line:
    """A TCP line to a server: "hangs" (takes requests, says nothing), "deaf" (drops the answers) or "through"."""

    def __init__(self, port: int, server: int | None = None, mode: str = "through") -> None:
        self.mode, self.server, self.sockets = mode, server, list[socket.socket]()
        self.listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                self.sockets.append(near)
                if self.mode != "hangs" and self.server:
                    far = socket.create_connection(("127.0.0.1", self.server))
                    self.sockets.append(far)
                    threading.Thread(target=self._carry, args=(near, far, False), daemon=True).start()
                    threading.Thread(target=self._carry, args=(far, near, self.mode == "deaf"), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, drop: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not drop:
                    target.sendall(data)
            if not drop:
                target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        for each in (self.listener, *self.sockets):
            each.close()


def test_a_server_that_does_not_answer_delays_neither_the_run_nor_its_end(tmp_path, free_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with contextlib.closing(Line(free_port, mode="hangs")) as line:
        record = make(tmp_path)
        sender = Sender(f"http://127.0.0.1:{free_port}", every=0.05)
        sender.add(record)
        eventually(lambda: line.sockets)
        start = time.monotonic()
        report(record, range(1, 101))
        appending = time.monotonic() - start
        message = sender.close(timeout=0.5)
        closing = time.monotonic() - start - appending
        assert appending < 0.5
        assert closing < 1.0
        assert message is not None
        assert message.startswith("1 run is not yet completely in MLflow")
        eventually(lambda: not [each for each in threading.enumerate() if each.name == "eagleray-sender"])
        assert sender.troubles == {record.key: "it does not answer in time"}
    assert len(record.metrics()) == 100


def test_a_server_that_is_gone_is_named_with_the_remedy(tmp_path, free_port):
    sweep = make(tmp_path)
    for name in "abc":
        make(tmp_path / f"trials/{name}", parent=sweep, experiment=sweep.experiment)
    uri = f"http://me:secret@127.0.0.1:{free_port}"
    with Sender(uri, every=0.05) as sender:
        sender.add(sweep)
    assert sender.message == (
        f"4 runs are not yet completely in MLflow at http://127.0.0.1:{free_port}: connection refused. "
        "Nothing is lost; `eagleray sync` sends the rest."
    )
    result = sync_all(tmp_path, uri)
    assert (result.sent, result.already, set(result.unsent.values())) == (0, 0, {"connection refused"})
    assert len(result.unsent) == 4
    with pytest.raises(ConfigError, match="connection refused"):
        rows("any", uri)


# MLflow's server and pages -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(database) -> Iterator[tuple[int, subprocess.Popen]]:
    """`eagleray.tracking.ui` in a process of its own: its port, and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Warnings are errors in our own part alone: MLflow's server, which it starts, warns of MLflow's own imports.
    ours = "import os; del os.environ['PYTHONWARNINGS']; from eagleray.tracking import ui"
    program = f"{ours}; ui({database.uri!r}, port={port})"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        eventually(lambda: answers(port) or process.poll() is not None, 120)
        yield port, process
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
        return True
    return False


def test_a_server_that_comes_back_gets_all_of_it_once(tmp_path, database, pages, free_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    record = make(tmp_path, params={"seed": 1})
    report(record, range(1, 4))
    sender = Sender(f"http://127.0.0.1:{free_port}", every=0.1)
    sender.add(record)
    eventually(lambda: sender.troubles.get(record.key) == "connection refused")

    line = Line(free_port, pages[0], mode="hangs")
    eventually(lambda: sender.troubles.get(record.key) == "it does not answer in time")
    count = "select count(*) from experiments where name = ?"
    line.mode = "deaf"  # from here on requests are carried out, and nobody hears of it
    eventually(lambda: line.sockets and database.query(count, record.experiment) == [(0,)])
    report(record, range(4, 6))
    time.sleep(1.5)
    line.mode = "through"
    report(record, range(6, 8))
    record.finish("finished", summary={"linear": 0.75})
    (record.artifacts / "a.txt").write_text("text")

    assert sender.close(timeout=60) is None
    line.close()
    assert database.points(record) == sorted([*expected(range(1, 8)), ("linear", 7, 0.75)])
    assert database.status(record) == "FINISHED"
    url = f"http://127.0.0.1:{pages[0]}/get-artifact?path=a.txt&run_uuid={database.run(record)}"
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.read() == b"text"


@pytest.mark.parametrize("method", ["create_run", "log_batch"])
def test_answers_lost_on_the_way_leave_nothing_twice(tmp_path, database, pages, free_port, monkeypatch, method):
    """The server carries a request out, its answer is lost, and the workers start again before the next attempt."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with contextlib.closing(Line(free_port, pages[0])) as line:
        destination = Destination(f"http://127.0.0.1:{free_port}")
        record = make(tmp_path)
        if method != "create_run":
            destination.send(record)
        report(record, range(1, 4))
        call = getattr(MlflowClient, method)

        def deaf(self, *arguments, **names):
            line.mode = "deaf"
            return call(self, *arguments, **names)

        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, method, deaf)
            # Connections are kept open between requests; a new one goes through the line as it is by then.
            patched.setattr("mlflow.utils.request_utils._cached_get_request_session", fresh_session())
            result = destination.send(record)
        assert result == Unsent("it does not answer in time", answered=False)
        line.mode = "through"
        report(record, range(2, 5), offset=0.5)
        with monkeypatch.context() as patched:
            patched.setattr("mlflow.utils.request_utils._cached_get_request_session", fresh_session())
            assert isinstance(destination.send(record), Sent)
    points = database.points(record)
    assert [(name, step) for name, step, _ in points] == [(name, step) for name, step, _ in expected(range(1, 5))]


def fresh_session() -> Callable:
    from mlflow.utils import request_utils

    return request_utils._cached_get_request_session.__wrapped__


def test_an_experiment_is_read_back(tmp_path, database, pages):
    sweep = make(tmp_path, name="sweep")
    for index in range(3):
        trial = make(
            tmp_path / f"trials/{index}", name=f"t{index}", parent=sweep, experiment=sweep.experiment,
            params={"seed": index}, tags={"kind": "trial", "point": "7"},
        )  # fmt: skip
        report(trial, range(1, 3))
        trial.finish("stopped" if index else "finished")
    for place in ("f/a", "f/b"):
        make(tmp_path / place, name="again", experiment=f"{sweep.experiment} twice")
    sync_all(tmp_path, database.uri)

    for uri in (database.uri, f"http://127.0.0.1:{pages[0]}"):
        first, *trials = rows(sweep.experiment, uri)
        assert (first["name"], first["state"], first["parent"]) == ("sweep", "running", None)
        assert first["created"] == sweep.created
        assert [trial["name"] for trial in trials] == ["t0", "t1", "t2"]
        assert [trial["params"] for trial in trials] == [{"seed": "0"}, {"seed": "1"}, {"seed": "2"}]
        assert [trial["state"] for trial in trials] == ["finished", "stopped", "stopped"]
        assert {trial["parent"] for trial in trials} == {first["run_id"]}
        assert {(trial["tags"]["kind"], trial["tags"]["point"]) for trial in trials} == {("trial", "7")}
        assert trials[0]["metrics"] == {"knn": 0.002, "loss": 0.5}
        assert rows(first["run_id"], uri) == [first, *trials]
        assert rows(trials[1]["run_id"], uri) == [trials[1]]
        for name in (f"x{sweep.experiment}", "it's", "0" * 32):
            with pytest.raises(ConfigError, match=r"no experiment and no run .*; it has '"):
                rows(name, uri)
        with pytest.raises(ConfigError, match="2 runs called 'again'; name one by its ID: "):
            rows("again", uri)


def test_every_setting_of_a_trial_is_a_param_and_a_comparison_is_the_same_from_both_places(tmp_path, database):
    """D2: trials sent what was varied alone, so nothing else could be filtered or compared."""
    _, parent = recorded_sweep(tmp_path / "runs/s/1", name=tmp_path.name, run={"epochs": 3})
    assert sync_all(tmp_path / "runs", database.uri).sent == 11
    trial = parent.children()[0]
    assert database.pairs("params", trial)["epochs"] == "3"
    client = connect(database.uri)
    ids = [client.get_experiment_by_name(tmp_path.name).experiment_id]

    def named(query: str) -> set[str]:
        return {run.info.run_name for run in client.search_runs(ids, query)}

    trials = {each.title for each in parent.children() if each.kind == "trial"}
    assert "000-seed0 temperature=0.1 flip=0" in trials
    assert named("params.method.name = 'simclr' and tags.kind = 'trial'") == trials
    assert named("params.epochs = '3'") == trials | {f"{tmp_path.name}/1"}
    assert named("params.data.name = 'digits' and params.method.name != 'simclr'") == set()
    assert len(named("params.`data.name` = 'digits' and tags.kind = 'floor'")) == 2

    here = compared([of_sweep(parent, parent.tags["varied"].split())])
    for name in (tmp_path.name, f"{tmp_path.name}/1"):
        there = compared([group_of(name, [from_mlflow(row) for row in rows(name, database.uri)])])
        assert (there.notes, there.varied) == (here.notes, here.varied)
        mine, its = (analyse(each.trials, each.varied, "knn", "max") for each in (here, there))
        assert csv_text(mine) == csv_text(its)


def test_ctrl_c_ends_the_pages_and_all_that_serves_them(pages, tmp_path, capsys):
    port, process = pages
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} cannot be used .*; choose another --port"):
        tracking.ui(f"sqlite:///{tmp_path}/mlflow.db", port=port)
    tracking.ui(f"http://me:secret@127.0.0.1:{port}/")
    title, *listed = capsys.readouterr().out.splitlines()
    assert title == "MLflow's pages:"
    assert 2 <= len(listed) <= 6  # at most the five newest experiments, and the list of all
    assert all(f"  http://127.0.0.1:{port}/#/experiments" in line for line in listed)

    served = children(process.pid)
    assert len(served) >= 2  # MLflow's command, and the server that it starts
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in served]
    assert not any("mlflow.db" in line for line in lines)  # which may hold a password, and everybody may read
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stdout is not None
    assert f"http://127.0.0.1:{port}" in process.stdout.read()
    eventually(lambda: not [pid for pid in served if Path(f"/proc/{pid}").exists()])
    assert not answers(port)


def children(pid: int) -> list[int]:
    found = [
        int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    ]
    return found + [below for child in found for below in children(child)]


def test_links_are_short_and_name_the_sweep_and_the_port_that_serves_it(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    key = "0123456789abcdef"
    charts = "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey={}&compareRunsMode=CHART"
    assert tracking.charts_url("7", None, uri) == f"http://127.0.0.1:5000{charts.format('runs')}"
    assert tracking.charts_url("7", key, "http://me:secret@host/") == f"http://host{charts.format('01234567')}"

    served = tmp_path / "mlflow.db.served"
    note = {"base": "http://127.0.0.1:5123", "pid": os.getpid(), "node": platform.node()}
    served.write_text(json.dumps(note))
    assert tracking.charts_url("7", key, uri) == f"http://127.0.0.1:5123{charts.format('01234567')}"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for stale in ({**note, "pid": ended.pid}, {**note, "node": "another machine"}):
        served.write_text(json.dumps(stale))
        assert tracking.ui_base(uri) == "http://127.0.0.1:5000"


def test_a_wrong_folder_is_named_and_no_store_is_made_there(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no MLflow store at .*mlflow.db: start `eagleray ui` where runs"):
        tracking.ui(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


# Stores --------------------------------------------------------------------------------------------------------


def test_the_store_is_the_one_given_then_the_environments_then_a_file_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here = f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking.store_uri() == tracking.store_uri("sqlite:///mlflow.db") == tracking.store_uri(here) == here
    assert tracking.ui_command() == tracking.ui_command(here) == "eagleray ui"
    assert tracking.ui_command("sqlite:///other.db") == f"eagleray ui tracking.uri=sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking.store_uri() == "http://host:5000"
    assert tracking.store_uri("postgresql+psycopg2://u@h/d") == "postgresql+psycopg2://u@h/d"
    assert tracking.ui_base() == "http://host:5000"
    for wrong in ("mlruns", "./mlflow.db", "file:///tmp/x", "ftp://x", "http://", "sqlite://x.db", "sqlite:///"):
        with pytest.raises(ConfigError, match="is not an MLflow store"):
            tracking.store_uri(wrong)
    with pytest.raises(ConfigError, match="There is no MLflow store"):
        rows("any", "sqlite:///nothing.db")
    assert not (tmp_path / "nothing.db").exists()


def test_runs_are_sent_to_the_store_each_was_made_for(tmp_path, database, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/never.db")
    record = make(tmp_path / "runs/e/a", experiment=tmp_path.name, uri=database.uri)
    assert sync_all(tmp_path / "runs").sent == 1
    assert sync_all(tmp_path / "runs").already == 1
    assert database.status(record) == "RUNNING"
    assert not (tmp_path / "never.db").exists()


def test_our_timeouts_apply_only_inside_and_the_users_stay(tmp_path, database, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    before = dict(os.environ)
    seen = {}

    def look(*_):
        seen.update(os.environ)
        raise OSError("enough")

    monkeypatch.setattr("eagleray.tracking.lookup.connect", look)
    assert sync(make(tmp_path), database.uri) == Unsent("enough", answered=True)
    assert (seen["MLFLOW_HTTP_REQUEST_TIMEOUT"], seen["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) == ("77", "0")
    assert dict(os.environ) == before


def test_patience_lasts_until_the_last_thread_is_done(monkeypatch):
    """Each thread took back what it had set: a slow one was left without, or left something behind."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    before, inside, done = dict(os.environ), threading.Event(), threading.Event()

    def other() -> None:
        with patient():
            inside.set()
            done.wait(20)

    thread = threading.Thread(target=other)
    with patient():
        thread.start()
        assert inside.wait(20)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0", "the other one still needs it"
    done.set()
    thread.join()
    assert dict(os.environ) == before


def test_a_run_is_found_among_more_experiments_than_a_page_has(tmp_path, database, monkeypatch):
    from mlflow import MlflowClient

    for name in ("a", "b", "c"):
        sync(
            make(tmp_path / name, experiment=f"{tmp_path.name} {name}", name=f"only {tmp_path.name}{name}"),
            database.uri,
        )
    search = MlflowClient.search_experiments
    monkeypatch.setattr(MlflowClient, "search_experiments", functools.partialmethod(search, max_results=1))
    for name in ("a", "b", "c"):
        assert len(rows(f"only {tmp_path.name}{name}", database.uri)) == 1


def test_a_run_that_another_process_sends_is_left_to_it(tmp_path, database):
    import fcntl

    record = make(tmp_path)
    with open(record.directory / "sync.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sync(record, database.uri) == Unsent("another process is sending it", answered=True)
    assert isinstance(sync(record, database.uri), Sent)
