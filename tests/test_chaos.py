"""The scripts of chaos/ injure for real, fail when a promise is broken, and find nothing broken at a small size."""

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import commands
import endurance
import hangs
import hostile_input
import observed
import psutil
import pytest
import repetition
import rot
import servers
import table
import torch

import storage
from eagleray.config import load_run
from eagleray.config.plugin_files import import_file
from eagleray.runs import checkpoint, state
from eagleray.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from eagleray.runs.record import Record

ROOT = Path(__file__).parents[1]
NAMES = [fault.script for fault in table.FAULTS]
SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)", "a-word-of-its-own"]


def code_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run a script in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["script", *words])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_script_says_what_it_injures_and_is_in_make_chaos(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module = import_file(f"chaos_{name}", ROOT / f"chaos/{name}.py")
    assert code_of(module, monkeypatch, "--help") == 0
    assert str(module.__doc__).partition("\n")[0] in " ".join(capsys.readouterr().out.split())
    assert name in (ROOT / "Makefile").read_text().partition("FAULTS := ")[2].partition("\n")[0].split()


# --- the verdict -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "code"),
    [([], 1), ([{"broken": ""}], 0), ([{"broken": ""}, {"broken": "lost"}], 1), ([{"count": 9, "broken": ""}], 0)],
)
def test_a_broken_promise_and_nothing_tried_are_failures(found: list[dict[str, Any]], code: int, tmp_path: Path):
    with pytest.raises(SystemExit) as ended:
        observed.concluded(found, tmp_path / "new/f.csv")
    assert ended.value.code == code
    if found:
        assert len((tmp_path / "new/f.csv").read_text().splitlines()) == 1 + len(found)


def test_the_bound_is_wilsons():
    z = 1.959964
    assert observed.most(0, 100) == pytest.approx(z**2 / (100 + z**2), rel=1e-4)
    assert observed.counted([{"count": "7", "broken": ""}, {"broken": "lost"}]) == (8, 1)


def a_run(place: Path) -> Path:
    run = load_run(None, [*observed.TINY, "epochs=3", "checkpoints.keep=3"])
    return repetition.alone(run, place)


def twice(place: Path) -> None:
    lines = (place / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (place / "metrics.jsonl").write_bytes(b"".join([*lines, lines[-1]]))


def lost(place: Path) -> None:
    (place / "metrics.jsonl").write_bytes(b"".join((place / "metrics.jsonl").read_bytes().splitlines(True)[:-1]))


def other_bit(part: str) -> Callable[[Path], None]:
    """Return what changes one bit of the weights or of the optimizer's state."""

    def change(place: Path) -> None:
        saved = load_checkpoint(checkpoints(place)[-1])
        _, tensor = next(each for each in observed.leaves(saved[part]) if each[1].is_floating_point() and each[1].ndim)
        tensor.view(-1)[:1].view(torch.int32).bitwise_xor_(1)
        save_checkpoint(place, saved, keep=3)

    return change


def test_a_planted_breach_is_a_difference(tmp_path: Path):
    whole, again = a_run(tmp_path / "whole"), a_run(tmp_path / "again")
    assert observed.differences(whole, again) == ""
    breaches = {"row twice": twice, "row lost": lost, "weight": other_bit("method"), "moment": other_bit("optimizer")}
    said = {}
    for name, change in breaches.items():
        place = tmp_path / name
        subprocess.run(["cp", "-r", again, place], check=True)
        (place / "status.json").unlink(missing_ok=True)  # it knows how long the rows are
        change(place)
        said[name] = observed.differences(whole, place).replace(", state", "")
    assert "steps told twice" in said["row twice"]
    assert said["row lost"].startswith("rows")
    assert said["weight"] == said["moment"] == "weights"


def test_a_point_that_is_lost_twice_there_or_another_is_found(tmp_path: Path):
    record = Record.create(tmp_path / "r", name="r", experiment="e", params={}, run={})
    for step in (1, 2):
        record.append(step, {"loss": 1 / step, "knn": 0.5}, step)
    store = tmp_path / "mlflow.db"
    with sqlite3.connect(store) as database:
        database.execute("CREATE TABLE metrics (run_uuid, key, step, value)")
        database.execute("CREATE TABLE tags (run_uuid, key, value)")
        database.execute("INSERT INTO tags VALUES ('a', 'eagleray.key', ?)", (record.key,))
        points = [("a", "loss", 1, 1.0), ("a", "loss", 2, 0.5), ("a", "knn", 1, 0.5), ("a", "knn", 2, 0.5)]
        database.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", points)
        database.commit()
        assert servers.sought(record, store) == (4, 0)
        assert commands.stored_points(store) == (4, 0)
        database.execute("INSERT INTO metrics VALUES ('a', 'loss', 2, 0.5)")
        database.execute("UPDATE metrics SET value = 0.25 WHERE key = 'knn' AND step = 1")
        database.execute("DELETE FROM metrics WHERE key = 'knn' AND step = 2")
        database.commit()
    assert servers.sought(record, store) == (4, 2)
    assert commands.stored_points(store) == (3, 1)


# --- the injuries ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_are_stopped_and_what_is_left_of_them_is_counted_and_ended():
    with subprocess.Popen(SLEEPS) as process:
        stopper = hangs.Stopper("a-word-of-its-own", random.Random(0))
        stopper()
        assert commands.until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, ROOT) < 60
        assert [each.pid for each in stopper.stopped] == [process.pid]
        assert stopper.left() == 1
        assert process.wait(60) == -signal.SIGKILL
        assert stopper.left() == 0


def test_every_damage_changes_the_file_and_is_undone(tmp_path: Path):
    path, draw, kinds = tmp_path / "f", random.Random(0), set[str]()
    path.write_bytes(b"\0" * 4096 + os.urandom(4096))
    whole = path.read_bytes()
    for _ in range(200):
        with rot.damage(path, draw) as kind:
            assert path.read_bytes() != whole
            kinds.add(kind)
        assert path.read_bytes() == whole
    assert kinds == {"flip", "zeros", "cut"}


def test_disks_fail_below_a_place_alone_and_as_often_as_asked(tmp_path: Path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()

    def force(path: Path) -> str:
        with path.open("w") as file:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                return str(errno.errorcode[error.errno or 0])
        return ""

    with storage.failing(errno.EIO, inside, calls=1):
        assert [force(outside), force(inside / "a"), force(inside / "a")] == ["", "EIO", ""]
    with storage.failing(errno.EROFS, inside):
        assert [force(inside / "a"), force(inside / "a"), force(outside)] == ["EROFS", "EROFS", ""]
        with pytest.raises(OSError, match="Read-only"):
            os.replace(outside, inside / "b")
    assert force(inside / "a") == ""


def test_mutations_change_settings():
    draw = random.Random(0)
    assert len({hostile_input.mutated(b"epochs: 1", draw) for _ in range(100)}) > 80


def test_growth_and_orphans_are_found():
    samples = [{"done": done, "memory": 100 + done, "files": 30} for done in range(100)]
    assert endurance.grown(samples, 100) == ["memory grew from 120 to 199"]
    assert endurance.grown([{**each, "memory": 100} for each in samples], 100) == []


# --- a small size of what is quick, and breaches in the product ------------------------------------------------


@pytest.mark.slow
def test_nothing_rotten_is_used_and_a_checkpoint_that_is_not_checked_is_found(monkeypatch: pytest.MonkeyPatch):
    small = ["--checkpoints=40", "--others=10", "--caches=4", "--resumed=1"]
    assert code_of(rot, monkeypatch, *small) == 0
    monkeypatch.setattr(checkpoint, "check", lambda path: None)
    assert code_of(rot, monkeypatch, "--checkpoints=20", "--others=0", "--caches=0", "--resumed=0") == 1


@pytest.mark.slow
def test_no_fault_of_a_disk_loses_anything_and_a_checkpoint_that_it_takes_is_missed(monkeypatch: pytest.MonkeyPatch):
    assert code_of(storage, monkeypatch, "--each=1", "--kinds", "full", "EIO once") == 0

    def deletes_first(directory: Path, values: dict[str, Any], keep: int) -> Path:
        for path in checkpoints(directory):
            path.unlink()
        return save_checkpoint(directory, values, keep)

    monkeypatch.setattr(state, "save_checkpoint", deletes_first)
    assert code_of(storage, monkeypatch, "--each=1", "--kinds", "EIO") == 1


@pytest.mark.slow
def test_runs_repeat_and_one_that_does_not_is_found(monkeypatch: pytest.MonkeyPatch):
    assert code_of(repetition, monkeypatch, "--seeds=1", "--resumes=2", "--workers") == 0
    restore = state.TrainingState.restore

    def forgets_moments(self: state.TrainingState, *where: Any) -> None:
        restore(self, *where)
        self.optimizer.state.clear()

    monkeypatch.setattr(state.TrainingState, "restore", forgets_moments)
    assert code_of(repetition, monkeypatch, "--seeds=1", "--resumes=1", "--workers") == 1


def test_a_table_made_again_follows_its_rows(monkeypatch: pytest.MonkeyPatch):
    rows = [{"processes": "1.0", "loop": "2.0", "step": "0.5", "broken": ""}] * 3 + [{"broken": "lost"}]
    monkeypatch.setattr(table, "read", lambda name: rows)
    assert table.line(1, table.FAULTS[0], rows)[3:] == ["4", "1", "70 %", "1.0, 1.0", "2.5, 2.5"]
    made = table.filled("a\n<!-- table: faults -->\n| old |\n\nb\n")
    assert made.count("\n| ") == 2 + len(table.FAULTS)
    assert "old" not in made


def test_the_table_in_docs_is_that_of_the_rows():
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    assert table.filled(page) == page, "make docs"
    assert page.count("<!-- table: faults -->\n| ") == 1


def test_a_number_that_is_told_twice_is_found_and_the_winners_test_numbers_are_none(tmp_path: Path):
    record = Record.create(tmp_path / "r", name="r", experiment="e", params={}, run={})
    record.append(10, {"knn": 0.5}, 1)
    record.append(20, {"knn": 0.6}, 2)
    record.append(20, {"test_knn": 0.6}, 2)
    assert observed.repeated(record.directory) == 0
    record.append(20, {"knn": 0.6}, 2)
    assert observed.repeated(record.directory) == 1
