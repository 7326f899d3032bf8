import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

from eagleray.contracts.address import without_password
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import LINE, write
from eagleray.runs import environment as environment_module
from eagleray.runs.environment import environment
from eagleray.runs.record import Record, find_records


def make(directory: Path, **changes) -> Record:
    facts = {"name": "a", "experiment": "e", "params": {"seed": 1}, "run": {"seed": 1}}
    return Record.create(directory, **{**facts, **changes})


def test_a_record_opened_is_the_record_created(tmp_path):
    run = {"method": {"name": "simclr", "temperature": 0.2}, "crop": [0.2, 1.0]}
    record = make(tmp_path / "r", params={"method.temperature": 0.2, "seed": 1}, run=run, tags={"why": "ä"})

    assert Record.open(tmp_path / "r") == record == pickle.loads(pickle.dumps(record))
    assert yaml.safe_load((tmp_path / "r" / "run.yaml").read_text()) == run
    assert record.state == "running"
    assert record.artifacts.is_dir()


def test_a_run_file_is_utf_8_whatever_the_locale_is(tmp_path, monkeypatch):
    opened = open
    monkeypatch.setattr(
        "builtins.open", lambda *given, **options: opened(*given, **{"encoding": "ascii", **options})
        if "b" not in "".join(given[1:]) else opened(*given, **options)
    )  # fmt: skip
    assert make(tmp_path / "r", run={"question": "Größe?"}).file() == {"question": "Größe?"}


def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    write(tmp_path / "report.md", "before")

    def killed(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "report.md", "after " * 1000)
    assert (tmp_path / "report.md").read_text() == "before"


def test_created_again_it_continues_as_the_same_run(tmp_path):
    first = make(tmp_path, tags={"place": "here", "note": "old"})
    first.append(10, {"loss": 1.0})
    first.finish("failed", "out of memory", {"knn": 0.5})
    time.sleep(0.002)
    again = make(tmp_path, params={"epochs": 20}, tags={"note": "new"})

    assert (again.key, again.created) == (first.key, first.created)
    assert again.params == {"epochs": 20}
    assert again.tags == {"place": "here", "note": "new"}
    assert (again.state, again.summary) == ("running", {})
    assert [row["loss"] for row in again.metrics()] == [1.0]
    assert make(tmp_path / "other").key != first.key


def test_a_step_is_one_row_and_what_was_written_last_holds(tmp_path):
    record = make(tmp_path)
    record.append(10, {"loss": 3.0}, epoch=1)
    record.append(20, {"loss": 2.0}, epoch=2)
    record.append(20, {"knn": 0.7})  # the evaluation of the same step
    record.append(10, {"loss": 2.9}, epoch=1)  # workers restarted from a checkpoint

    rows = record.metrics()
    assert [{**row, "time": None} for row in rows] == [
        {"step": 10, "epoch": 1.0, "time": None, "loss": 2.9},
        {"step": 20, "epoch": 2.0, "time": None, "loss": 2.0, "knn": 0.7},
    ]
    assert all(abs(row["time"] - time.time() * 1000) < 60_000 for row in rows)
    assert [row["step"] for row in record.read()[0]] == [10, 20, 20, 10]


def test_a_line_cut_anywhere_costs_that_line_only(tmp_path):
    record = make(tmp_path)
    record.append(1, {"loss": 0.5})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    record.append(2, {"loss": math.nan, "knn": 0.25})
    last = (tmp_path / "metrics.jsonl").read_bytes()[len(whole) :]

    for cut in range(1, len(last)):
        (tmp_path / "metrics.jsonl").write_bytes(whole + last[:cut])
        assert [row["step"] for row in record.metrics()] == [1], cut
        record.append(3, {"loss": 0.125})
        # A line that lacks nothing but its end is whole once it is ended.
        assert [row["step"] for row in record.metrics()] == [1, 3], cut


@pytest.mark.slow
def test_a_killed_writer_leaves_every_row_that_it_appended(tmp_path):
    make(tmp_path)
    program = (
        "import itertools\nfrom eagleray.runs.record import Record\n"
        f"record = Record.open({str(tmp_path)!r})\n"
        "for step in itertools.count():\n    record.append(step, {'loss': 1 / (step + 1)})\n    print(step, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(50)][-1]
        writer.send_signal(signal.SIGKILL)

    record = Record.open(tmp_path)
    steps = [row["step"] for row in record.metrics()]
    assert steps == list(range(len(steps)))
    assert len(steps) > said


@pytest.mark.slow
def test_a_question_in_any_script_is_kept_under_any_locale(tmp_path):
    program = (
        "import sys\nfrom eagleray.runs.record import Record\nrun = {'question': '\\uc5b4\\ub5a4?'}\n"
        "record = Record.create(sys.argv[1], name='a', experiment='e', params={}, run=run)\nassert record.file() == run"
    )
    ascii_only = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=ascii_only, check=True)


def test_reading_continues_where_the_last_reading_ended(tmp_path):
    record = make(tmp_path)
    assert record.read() == ([], 0)
    record.append(1, {"loss": 1.0})
    rows, end = record.read()
    assert [row["step"] for row in rows] == [1]
    record.append(2, {"loss": 1.0})
    line = LINE.put('{"step": 3, "epoch": 1, "time": 5, "metrics": {"loss": 2}}') + b"\n"
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(line[:16])  # being written
    rows, later = record.read(end)
    assert [row["step"] for row in rows] == [2]
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(line[16:])
    assert record.read(later)[0] == [{"step": 3, "epoch": 1, "time": 5, "metrics": {"loss": 2.0}}]


def test_numbers_that_json_lacks_are_stored_as_strings(tmp_path):
    record = make(tmp_path)
    record.append(np.int64(1), {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.5)})
    record.finish("collapsed", summary={"knn": math.nan})

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse)["metrics"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 0.5}
    (row,) = record.metrics()
    assert math.isnan(row["a"])
    assert (row["b"], row["c"], row["d"]) == (math.inf, -math.inf, 0.5)
    assert math.isnan(record.summary["knn"])


def test_what_cannot_be_a_row_is_refused(tmp_path):
    record = make(tmp_path)
    with pytest.raises(TypeError):
        record.append(1.5, {"loss": 1.0})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'epoch'"):
        record.append(1, {"epoch": 1.0})
    with pytest.raises(ValueError, match="'done'"):
        record.finish("done")
    assert record.metrics() == []
    assert record.state == "running"


@pytest.mark.parametrize("state", ["finished", "failed", "stopped", "collapsed"])
def test_the_ending_is_read_back(tmp_path, state):
    record = make(tmp_path)
    record.finish(state, "why", {"knn": 0.75})
    status = Record.open(tmp_path).status
    assert abs(status.pop("time") - time.time() * 1000) < 60_000
    assert status == {"state": state, "message": "why", "summary": {"knn": 0.75}, "sizes": {}}


def test_a_tag_added_later_is_kept(tmp_path):
    record = make(tmp_path, tags={"a": "1"})
    grown = record.tag({"checkpoint": "s3://x"})
    assert grown == Record.open(tmp_path)
    assert grown.tags == {"a": "1", "checkpoint": "s3://x"}
    assert grown.key == record.key


def test_a_directory_without_a_run_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing is not the directory of a run"):
        Record.open(tmp_path / "nothing")
    for text in ("", "[]", '{"key": "x"}'):
        (tmp_path / "record.json").write_text(text)
        with pytest.raises(ConfigError, match=r"record\.json is damaged"):
            Record.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host:5000/x", "http://host:5000/x"),
        ("postgresql+psycopg2://me:s@cr@t@db/mlflow", "postgresql+psycopg2://db/mlflow"),  # @ belongs in %40, but …
        ("a http://me:secret@one b https://you@two/@", "a http://one b https://two/@"),
        ("http://host?mail=a@b", "http://host?mail=a@b"),
        ("sqlite:////data/me@work/m.db", "sqlite:////data/me@work/m.db"),
        ("sqlite:///me@work.db", "sqlite:///me@work.db"),
        ("/here/http:/me:secret@host/x is no folder", "/here/http://host/x is no folder"),
        ("/data:/me@work", "/data:/me@work"),
        ("postgresql://me:se/cr#et?@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        ("http://host:5000/x@y", "http://host:5000/x@y"),
        ("mysql://db/m?user=me&password=secret&x=1", "mysql://db/m?user=me&password=&x=1"),
        ("https://hook?Access_Token=secret#here", "https://hook?Access_Token=#here"),
    ],
)
def test_passwords_are_written_nowhere(text: str, shown: str):
    assert without_password(text) == shown


def test_a_sweep_finds_its_trials_and_they_it_even_after_a_move(tmp_path):
    sweep = make(tmp_path / "runs/e/s", name="s", uri="http://me:secret@host:5000")
    for trial in ("b", "a"):
        make(sweep.directory / "trials" / trial, name=trial, parent=sweep)
        time.sleep(0.002)
    assert [child.name for child in sweep.children()] == ["b", "a"]  # in the order they started
    assert {child.uri for child in sweep.children()} == {"http://host:5000"}  # and no password is written down
    assert sweep.parent is None

    shutil.move(tmp_path / "runs", tmp_path / "moved")
    moved = Record.open(tmp_path / "moved/e/s")
    assert [child.parent for child in moved.children()] == [moved, moved]


def test_a_trial_knows_its_values_and_is_named_by_them(tmp_path):
    sweep = make(tmp_path / "20260101-120000", name="s", tags={"kind": "sweep", "varied": "method.temperature only"})
    params = {"method.temperature": 0.1 + 0.2, "only": "crop+flip", "epochs": 3}
    tags = {"kind": "trial", "varied": "method.temperature only"}
    trial = make(sweep.directory / "trials/003-seed1", name="003-seed1", params=params, parent=sweep, tags=tags)
    assert Record.open(trial.directory).varied == {"method.temperature": 0.1 + 0.2, "only": "crop+flip"}
    assert trial.title == "003-seed1 temperature=0.3 only=crop+flip"
    assert (sweep.varied, sweep.title) == ({}, "s/20260101-120000")
    assert (make(tmp_path / "a").varied, make(tmp_path / "a").title) == ({}, "a")


def test_all_runs_are_found_from_any_height(tmp_path):
    sweep = make(tmp_path / "e/s", name="s")
    make(sweep.directory / "trials/t", name="t", parent=sweep)
    make(tmp_path / "e/a", name="a")
    make(tmp_path / "f/x", name="x", experiment="f")

    def names(*where):
        return [record.name for record in find_records(*where)]

    assert names(tmp_path) == ["a", "s", "t", "x"]
    assert names(tmp_path, "f") == ["x"]
    assert names(tmp_path / "e") == ["a", "s", "t"]
    assert names(tmp_path / "e/s") == ["s", "t"]
    assert names(tmp_path / "nowhere") == []


@pytest.mark.slow
def test_the_environment_names_commit_and_changes(tmp_path, monkeypatch):
    def git(*arguments):
        settings = ["-c", "user.name=x", "-c", "user.email=x@x"]
        done = subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True, capture_output=True)
        return done.stdout.decode().strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def found():
        environment_module._git.cache_clear()  # as in a new process
        facts = environment()
        return facts["commit"], facts["uncommitted_changes"]

    assert found() == (None, None)
    git("init")
    Path("file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert found() == (git("rev-parse", "HEAD"), False)
    Path("file").write_text("2")
    assert found() == (git("rev-parse", "HEAD"), True)
    monkeypatch.setenv("PATH", "")  # a machine without git
    assert found() == (None, None)


def test_the_environment_names_versions_and_hardware(monkeypatch):
    facts = environment()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    (installed,) = Path(yaml.__file__).parents[1].glob("torch-*.dist-info")
    assert installed.name == f"torch-{facts['torch']}.dist-info"
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert 0 < facts["memory_gib"] < 100_000

    cuda = types.SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda index: f"card {index}"
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert environment()["gpus"] == "card 0, card 1"


@pytest.mark.slow
def test_importing_record_and_tracking_loads_none_of_the_heavy_packages():
    program = (
        "import sys, eagleray.runs.environment, eagleray.tracking\neagleray.runs.environment.environment()\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'numpy', 'pandas', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
