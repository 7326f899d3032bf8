"""Failures are made by real code where that is possible, and each is put into its class."""

import errno
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import TCPStore

from eagleray.config import load_run
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.report import Diverged
from eagleray.loop import train
from eagleray.runs import failures
from eagleray.runs.failures import Failure, failure_in, keep_error, kills_for_memory, may_resume, smaller_batch, told
from eagleray.runs.record import Record
from eagleray.runs.writer import recorded
from eagleray_methods.simclr import SimCLR

TINY = ["data.limit=64", "batch_size=16", "epochs=2", "encoder.width=4", "threads=1", "evaluate.linear.when=never",
        "precision=fp32"]  # fmt: skip


def full_disk() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")
        file.flush()


def no_rendezvous() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(milliseconds=300), wait_for_workers=False)


def peer_that_hangs() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.settimeout(0.05)
        client.connect(server.getsockname())
        client.recv(1)


def wrapped() -> None:
    try:
        np.empty(10**15)
    except MemoryError as error:
        raise ValueError("the cache cannot be filled") from error


def raises(error: BaseException) -> Callable[[], None]:
    """Fail as code does that cannot run here."""

    def fail() -> None:
        raise error

    return fail


INJECTED = {
    "numpy's array": (lambda: np.empty(10**15), "out of memory"),
    "torch's allocator": (lambda: torch.empty(10**15), "out of memory"),
    "a GPU": (raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), "out of memory"),
    "the system": (raises(OSError(errno.ENOMEM, "Cannot allocate memory")), "out of memory"),
    "memory, told by other words": (wrapped, "out of memory"),
    "a full disk": (full_disk, "infrastructure"),
    "a stale mount": (raises(OSError(errno.ESTALE, "Stale file handle")), "infrastructure"),
    "a port without server": (lambda: socket.create_connection(("127.0.0.1", 1)), "infrastructure"),
    "a peer that hangs": (peer_that_hangs, "infrastructure"),
    "no rendezvous": (no_rendezvous, "infrastructure"),
    "a peer that died": (raises(RuntimeError("[gloo/tcp/pair.cc] Connection closed by peer")), "infrastructure"),
    "shapes": (lambda: nn.Linear(3, 4)(torch.zeros(2, 5)), "bug"),
    "an index": (lambda: [][5], "bug"),
    "a missing file": (lambda: Path("/nowhere/x").read_text(), "bug"),
    "text that speaks of memory": (raises(ValueError("out of memory")), "bug"),
    "a setting": (lambda: load_run(None, ["epochs=0"]), "settings"),
}


@pytest.mark.parametrize("name", INJECTED)
def test_an_injected_failure_is_put_into_its_class(name: str):
    fails, kind = INJECTED[name]
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        fails()
    failure = Failure.of(caught.value)
    assert failure.kind == kind
    assert failure.is_tried_again == (kind == "infrastructure")
    assert bool(failure.digest) == (kind == "bug")
    assert "\n" not in failure.reason


def started(directory: Path, *more: str) -> tuple[Any, Record]:
    run = load_run(None, [*TINY, *more])
    return run, Record.create(directory, name="r", experiment="e", params={}, run=run.file())


def test_a_loss_that_is_no_number_names_its_step_and_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[int]] = []
    forward = SimCLR.forward

    def breaks(self: SimCLR, batch: Any, progress: Any) -> Any:
        seen.append(batch.indices.tolist())
        result = forward(self, batch, progress)
        return result if progress.step != 5 else type(result)(result.loss * float("inf"), result.embeddings)

    monkeypatch.setattr(SimCLR, "forward", breaks)
    run, record = started(tmp_path)
    with pytest.raises(Diverged, match="the loss is inf at step 6; ") as caught:
        list(recorded(train(run, tmp_path), record))
    failure = failure_in(record)
    assert failure is not None
    assert failure.kind == "diverged"
    first = ", ".join(map(str, seen[5][:8]))
    assert failure.reason == str(caught.value)
    assert f"The step's images are {first}, … of the training set." in failure.reason
    assert str(seen[5]) in (record.artifacts / "error.txt").read_text()  # all of them
    assert told(record).splitlines()[-1] == f"next: eagleray train {tmp_path / 'run.yaml'} optimizer.lr=0.0005"
    assert not may_resume(record)  # it would only diverge again


def test_a_bug_names_the_line_and_the_log_and_is_tried_again_when_it_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(SimCLR, "forward", lambda self, batch, progress: {}["missing"])
    digests = []
    for place in (tmp_path / "a", tmp_path / "b"):
        run, record = started(place)
        with pytest.raises(KeyError):
            list(recorded(train(run, place), record))
        failure = failure_in(record)
        assert failure is not None
        digests.append(failure.digest)
    assert digests[0] == digests[1]
    lines = told(record).splitlines()
    assert lines[0] == "r failed (bug): KeyError: 'missing'"
    assert lines[1].startswith(f"  at {__file__}:")
    assert lines[2:] == [
        f"log: {record.artifacts / 'error.txt'}",
        f"next: put that right, then: eagleray train {record.directory / 'run.yaml'} --resume",
    ]
    assert "Traceback (most recent call last)" in (record.artifacts / "error.txt").read_text()
    assert may_resume(record)


def test_a_failure_of_the_machine_is_left_to_whoever_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SimCLR, "forward", lambda self, batch, progress: full_disk())
    run, record = started(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        list(recorded(train(run, tmp_path), record))
    assert record.state == "running"


@pytest.mark.parametrize(
    ("settings", "size"),
    [(["batch_size=256"], 128), (["batch_size=24", "workers=4", "device=cpu"], 12), (["batch_size=2"], None),
     (["method=fixmatch", "labels.per_class=4", "batch_size=28", "labels.ratio=7"], 14)],
)  # fmt: skip
def test_memory_asks_for_a_smaller_batch_that_the_run_accepts(settings: list[str], size: int | None, tmp_path: Path):
    run = load_run(None, settings)
    assert smaller_batch(run) == size
    record = Record.create(tmp_path, name="r", experiment="e", params={}, run=run.file())
    keep_error(record, MemoryError("no room"))
    assert told(record).splitlines()[0] == "r failed (out of memory): MemoryError: no room"
    if size:
        assert told(record).endswith(f"next: eagleray train {tmp_path / 'run.yaml'} batch_size={size}")


def test_a_failed_trial_names_the_sweep_to_type_or_its_own_run_where_the_batch_varies(tmp_path: Path):
    for vary, command in ({"augment.flip": [0, 1]}, "sweep"), ({"batch_size": [64, 256]}, "train"):
        place = tmp_path / command
        parent = Record.create(place, name="s", experiment="s", params={}, run={"vary": vary}, tags={"kind": "sweep"})
        run = load_run(None, [])
        trial = Record.create(place / "trials/0", name="0", experiment="s", params={}, run=run.file(), parent=parent)
        keep_error(trial, MemoryError("no room"))
        file = place / "run.yaml" if command == "sweep" else trial.directory / "run.yaml"
        assert told(trial).splitlines()[-1] == f"next: eagleray {command} {file} batch_size=128"


def test_a_config_error_stays_one(tmp_path: Path):
    assert Failure.of(ConfigError("labels: there are none")).reason == "labels: there are none"


def test_a_long_reason_is_cut(tmp_path: Path):
    assert len(Failure.of(ValueError("x" * 5000)).reason) == 300


def test_processes_killed_for_their_memory_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The kernel's own count, of this process's control group or of the machine."""
    if Path("/proc/vmstat").exists():
        count = kills_for_memory()
        assert count is not None
        assert count >= 0
    (tmp_path / "cgroup").write_text("0::/some/group\n")
    (tmp_path / "events").write_text("low 0\noom 4\noom_kill 3\noom_group_kill 0\n")
    real = Path

    def elsewhere(name: str) -> Path:
        places = {"/proc/self/cgroup": "cgroup", "/sys/fs/cgroup/some/group/memory.events": "events"}
        return tmp_path / places[name] if name in places else real(name)

    monkeypatch.setattr(failures, "Path", elsewhere)
    assert kills_for_memory() == 3
