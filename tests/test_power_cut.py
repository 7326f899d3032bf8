"""The checker of power cuts finds what is wrong, and finds nothing wrong in a run."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import disk
import power_cut
import pytest
import torch

from eagleray.contracts import files
from eagleray.runs import checkpoint, state
from eagleray.runs import record as records
from eagleray.runs.record import Record


def recorded(root: Path) -> list[disk.Event]:
    """Record what a run writes, without training."""
    with power_cut.acknowledging(root) as recorder:
        record = Record.create(root / "e/r", name="r", experiment="e", params={}, run={"seed": 1})
        for step in (1, 2, 3):
            state.save_checkpoint(record.directory, {"step": step, "w": torch.ones(step)}, 1)
            record.append(step, {"loss": 1 / step}, step)
        record.finish("finished", summary={"loss": 0.5})
    return recorder.events


def skips(left_out: Callable[[Path], bool]) -> Callable[[Path], None]:
    """Return a `force` that does nothing for some paths."""
    real = files.force
    return lambda path: None if left_out(path) else real(path)


def test_a_disk_forgets_what_was_not_forced(tmp_path: Path):
    with disk.Recorder(tmp_path) as recorder:
        (tmp_path / "a").write_bytes(b"12345678")
        files.force(tmp_path / "a")
        (tmp_path / "a").rename(tmp_path / "b")
        files.force(tmp_path)
        (tmp_path / "b").unlink()
    named, wrote, forced, renamed, folder, gone = recorder.events
    assert (named, wrote) == (disk.Named("a", 0), disk.Wrote(0, b"12345678"))
    assert (forced, renamed) == (disk.Forced(0), disk.Named("b", 0, before="a"))
    assert (folder, gone) == (disk.Forced("."), disk.Named("b", None))

    def left(after: int, model: str) -> list[disk.Tree]:
        return list(disk.states(recorder.events[:after], model))

    whole = {"a": b"12345678"}
    for tree in ({}, {"a": b""}, {"a": b"123"}, whole):
        assert tree in left(2, "ordered")
    assert {"a": b"123\0\0\0\0\0"} in left(2, "any order")
    assert {"a": b"123\0\0\0\0\0"} not in left(2, "ordered")
    assert all(tree == whole for tree in left(3, "ordered"))
    assert {} in left(3, "any order")  # its content is safe, not yet its name
    for model in disk.MODELS:
        assert {tuple(tree) for tree in left(4, model)} >= {("a",), ("b",)}
        assert all(tree == {"b": b"12345678"} for tree in left(5, model))
        assert {tuple(tree) for tree in left(6, model)} == {("b",), ()}


def test_rows_checkpoints_and_ends_outlast_every_power_cut(tmp_path: Path):
    result = power_cut.replay(recorded(tmp_path / "runs"))
    assert result.broken == []
    assert min(result.states.values()) > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left_out", "loses"),
    [
        (Path.is_dir, "e/r checkpoint was 2, and is"),
        (lambda path: path.name == "checkpoints", "e/r checkpoint was 3, and is"),
        (lambda path: path.name == "r", "e/r status was finished, and is running"),
        (lambda path: path.name.startswith(".run.yaml"), "e/r/run.yaml is torn"),
        (lambda path: path.suffix == ".tmp", "is torn"),
    ],
    ids=["folders", "the folder of checkpoints", "the folder of the run", "run.yaml", "checkpoints"],
)
def test_the_checker_finds_what_is_not_forced(
    left_out: Callable[[Path], bool], loses: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forces = skips(left_out)
    for module in (files, checkpoint, records):
        monkeypatch.setattr(module, "force", forces)
    result = power_cut.replay(recorded(tmp_path / "runs"), every=5)
    assert any(loses in sentence for sentence in result.broken), result.broken[:5]


@pytest.mark.slow
def test_the_checker_finds_rows_that_are_not_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    careless = SimpleNamespace(**{**vars(os), "fsync": lambda _: None})
    monkeypatch.setattr(records, "os", careless)
    broken = power_cut.replay(recorded(tmp_path / "runs"), every=5).broken
    assert any("e/r metrics.jsonl:1 was {'step': 1, 'loss': 1.0}, and is None" in sentence for sentence in broken)
    assert any("the checkpoint of step 3 has passed e/r metrics.jsonl" in sentence for sentence in broken)


@pytest.mark.slow
def test_a_real_run_outlasts_power_cuts():
    """A part of what `python chaos/power_cut.py` tries: each fiftieth state."""
    events = power_cut.run(2, keep=1)
    assert {"eagleray/one key", "eagleray/one status", "eagleray/one checkpoint", "eagleray/one encoder"} <= {
        event.name for event in events if isinstance(event, disk.Acknowledged)
    }
    result = power_cut.replay(events, every=50)
    assert result.broken == []
    assert result.states.total() > 100
