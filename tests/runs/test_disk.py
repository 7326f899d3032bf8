"""A disk that is full, read-only or gone: one sentence, the last good checkpoint stays, nothing is left unfinished."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import command_line
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.files import write
from eagleray.contracts.report import Failed
from eagleray.runs.checkpoint import checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from eagleray.runs.failures import keep_end, may_resume
from eagleray.runs.record import Record
from eagleray.tracking import rows

FULL = r"cannot be written: No space left on device \(\d+\.\d MiB are free there\)"
Remount = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"only root of a whole machine may mount a disk: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def make(directory: Path) -> Record:
    return Record.create(directory, name="r", experiment="e", params={}, run={"seed": 1})


def state_of(step: int, kilobytes: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full([kilobytes * 256], float(step))}


def append(record: Record, count: int) -> None:
    for step in range(2, count + 2):
        record.append(step, {"loss": 1 / step, "more": float(step)}, step)


def fill(disk: Path) -> Path:
    """Take all room that is left."""
    with suppress(OSError), (disk / "others").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    assert shutil.disk_usage(disk).free == 0
    return disk / "others"


def test_a_checkpoint_without_room_leaves_the_last_one_and_nothing_unfinished(disk: Path):
    record = make(disk / "r")
    good = save_checkpoint(record.directory, state_of(1, 300), keep=1)
    free = shutil.disk_usage(disk).free
    with pytest.raises(Failed, match=f"step-000000002.pt {FULL}") as caught:
        save_checkpoint(record.directory, state_of(2, 900), keep=1)
    assert caught.value.kind == "infrastructure"
    assert "\n" not in str(caught.value)
    assert list((record.directory / "checkpoints").iterdir()) == [good]
    assert shutil.disk_usage(disk).free == free  # nobody holds a file without a name
    assert load_checkpoint(good)["step"] == 1
    assert save_checkpoint(record.directory, state_of(3, 300), keep=1) == newest_checkpoint(record.directory)


def test_on_a_full_disk_a_run_still_writes_that_it_has_failed(disk: Path):
    record = make(disk / "r")
    record.append(1, {"loss": 1.0}, 1)
    others = fill(disk)
    with pytest.raises(Failed, match=f"metrics.jsonl {FULL}") as caught:
        append(record, 100)  # what is left of the last block takes a few rows
    acknowledged = len(record.metrics())
    told = keep_end(record, caught.value)
    assert told.startswith(f"r failed (infrastructure): {caught.value}\n")
    assert told.endswith(f"next: eagleray train {record.directory}/run.yaml --resume")
    assert record.state == "failed"
    assert may_resume(record)
    assert not (record.directory / ".room").exists()

    others.unlink()
    again = make(record.directory)
    again.append(100, {"loss": 0.1}, 100)
    assert len(again.metrics()) == acknowledged + 1
    assert (again.directory / ".room").stat().st_size == 2**14


def test_a_disk_that_became_read_only_is_told_in_a_sentence(disk: Path):
    record = make(disk / "r")
    record.append(1, {"loss": 1.0}, 1)
    record.finish("stopped")
    remount(disk, "ro")
    tries: list[Callable[[], Any]] = [
        lambda: record.append(2, {"loss": 0.5}, 2),
        lambda: save_checkpoint(record.directory, state_of(1, 1), keep=1),
        lambda: record.finish("finished"),
        lambda: record.reopen(),
        lambda: make(record.directory),
    ]
    for attempt in tries:
        with pytest.raises(Failed, match="cannot be written: Read-only file system") as caught:
            attempt()
    assert "\n" not in keep_end(record, caught.value)
    assert record.state == "stopped"
    assert len(record.metrics()) == 1


def test_a_directory_that_vanished_is_told_and_not_made_again(tmp_path: Path):
    record = make(tmp_path / "r")
    shutil.rmtree(record.directory)
    for attempt in (
        lambda: record.append(1, {"loss": 1.0}, 1),
        lambda: save_checkpoint(record.directory, state_of(1, 1), keep=1),
        lambda: record.finish("finished"),
    ):
        with pytest.raises(Failed, match=f"cannot be written: No such file or directory, as {record.directory}"):
            attempt()
    assert not record.directory.exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_fault_at_any_write_loses_nothing_that_was_kept(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No matter which of its calls fails, and how: the run reads as it did before, and goes on."""
    real, left = getattr(os, call), [0]

    def fails(*arguments: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.EIO if call == "fsync" else errno.ENOSPC, os.strerror(errno.EIO))
        return real(*arguments, **more)

    def lives(directory: Path, kept: dict[str, Any]) -> None:
        record = make(directory)
        for step in (1, 2):
            save_checkpoint(directory, state_of(step, 1), keep=1)
            kept["step"] = step
            record.append(step, {"loss": 1 / step}, step)
            kept["rows"] = step
        record.finish("finished", summary={"loss": 0.5})
        kept["state"] = "finished"

    monkeypatch.setattr(os, call, fails)
    failed = 0
    for number in range(1, 60):
        directory, kept = tmp_path / str(number), dict[str, Any]()
        left[0] = number
        try:
            lives(directory, kept)
        except Failed:
            failed += 1
        left[0] = 0
        unfinished = [path for path in directory.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
        assert [path.name for path in unfinished if path.name != ".room"] == []
        if kept:
            record = Record.open(directory)
            assert len(record.metrics()) >= kept.get("rows", 0)
            assert record.state == kept.get("state", record.state)
            assert load_checkpoint(checkpoints(directory)[-1])["step"] >= kept["step"]
        lives(directory, kept)
        assert [row["loss"] for row in Record.open(directory).metrics()] == [1.0, 0.5]
    assert failed >= 5


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written_again(tmp_path: Path):
    for left in (".a.json.4711", ".a.json.12"):
        (tmp_path / left).write_text("part")
    (tmp_path / ".b.json.4711").write_text("part")
    write(tmp_path / "a.json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.4711", "a.json"]


def test_a_file_that_a_person_has_named_is_refused_in_a_sentence(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"^--csv .*/no/x.csv cannot be written: No such file or directory, as .*; name"
    ):
        write(tmp_path / "no/x.csv", "", "--csv {}; name another file")


@pytest.mark.parametrize("place", ["/proc/runs", "/dev/null/runs"])
def test_a_folder_of_runs_that_cannot_be_made_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    ended = command_line(monkeypatch, capsys)("train", f"tracking.runs={place}", "data.limit=64", "batch_size=16")
    assert ended.code == 2
    assert "cannot be written" in ended.err
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_of_runs_is_refused(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    remount(disk, "ro")
    ended = command_line(monkeypatch, capsys)("train", f"tracking.runs={disk}/runs", "data.limit=64", "batch_size=16")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "set tracking.runs to another folder" in ended.err


@pytest.mark.slow
def test_a_run_on_a_full_disk_fails_in_a_sentence_and_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    eagleray = command_line(monkeypatch, capsys)
    settings = ["data.limit=64", "batch_size=16", "epochs=9", "encoder.width=4", "method.hidden=128", "threads=1",
                "evaluate.linear.when=never", "checkpoints.keep=9", f"tracking.runs={disk}/runs"]  # fmt: skip
    ended = eagleray("train", *settings)
    (directory,) = (disk / "runs/eagleray").iterdir()
    record = Record.open(directory)
    first, *_, last = ended.err.splitlines()
    assert ended.code == 1
    assert f"failed (infrastructure): {directory}/" in first
    assert "No space left on device (" in first
    assert last == f"next: eagleray train {directory}/run.yaml --resume"
    assert "Traceback" not in ended.err
    assert record.state == "failed"
    assert [row["state"] for row in rows("eagleray")] == ["failed"]
    assert list(directory.rglob("*.tmp")) == []
    saved = newest_checkpoint(directory)
    assert saved is not None
    done = load_checkpoint(saved)["step"] // 4

    remount(disk, "size=9m")
    again = eagleray("train", *settings, "--resume")
    assert again.code == 0, again.err
    assert record.state == "finished"
    assert [row["epoch"] for row in record.metrics()] == list(range(1, 10))
    assert 0 < done < 9
    (row,) = rows("eagleray")
    assert row["state"] == "finished"
