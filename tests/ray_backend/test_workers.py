"""Several workers train as one process does, survive it when one of them is killed, and leave nothing behind."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import WorkerCrashedError
from ray.util.placement_group import placement_group

from eagleray.config import Run, load_run
from eagleray.contracts.errors import ConfigError, Noted
from eagleray.contracts.report import Report
from eagleray.loop import train
from eagleray.ray_backend import workers as ray_train
from eagleray.ray_backend.cluster import connected
from eagleray.ray_backend.workers import free, group, train_on_workers
from eagleray.runs import hangs
from eagleray.runs.checkpoint import checkpoints
from eagleray.runs.record import Record
from eagleray.runs.writer import recorded
from same_weights import assert_same_weights

PLAIN = ["data.limit=160", "batch_size=40", "epochs=2", "encoder.width=8", "precision=fp32",
         "device=cpu", "threads=1", "evaluate.linear.when=never"]  # fmt: skip

# Muon orthogonalises in bfloat16, where numbers that differ by float32's rounding may become neighbours: workers differ
# by more than with AdamW (in float64 they do not, tests/test_sharding.py).
ADAMW = ["optimizer.name=adamw", "optimizer.lr=2e-3"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with connected(None):
        yield


@ray.remote
def warns() -> None:
    warnings.warn("old", DeprecationWarning, stacklevel=1)


def test_warnings_of_ray_workers_are_errors(session: None):
    with pytest.raises(DeprecationWarning, match="old"):
        ray.get(warns.remote())


def run_of(workers: int, *more: str) -> Run:
    return load_run(None, [*PLAIN, *ADAMW, f"workers={workers}", *more])


def started(run: Run, directory: Path) -> Path:
    Record.create(directory, name="run", experiment="test", params={}, run=run.file())
    return directory


def rows(directory: Path) -> list[dict[str, float]]:
    """The metrics as they were written: one line for each step, or the test fails here."""
    lines = Record.open(directory).read()[0]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)), "a step was counted twice"
    return [{k: v for k, v in line["metrics"].items() if k != "images_per_second"} for line in lines]


def workers_of_this_process() -> list[int]:
    """The training processes that descend from this one."""
    parents, named = {}, []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if b"RayTrainWorker" in (place / "cmdline").read_bytes():
                named.append(int(place.name))
        except FileNotFoundError:
            continue

    def descends(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and descends(parents[pid]))

    return [pid for pid in named if descends(pid)]


def test_what_cannot_work_is_refused_before_ray_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def connects(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray_train, "connected", connects)
    with pytest.raises(ConfigError, match="batch_size=400 is larger than the data"):
        next(train_on_workers(run_of(2, "batch_size=400"), tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_two_workers_train_as_one_process_does(session: None, tmp_path: Path):
    alone = started(run_of(1), tmp_path / "alone")
    expected = list(recorded(train(run_of(1), alone), Record.open(alone)))
    together = started(run_of(2), tmp_path / "together")
    reports = list(train_on_workers(run_of(2), together))
    assert all(isinstance(report, Report) for report in reports)
    ends = [report for report in reports if report.epoch_ended]
    assert [r.progress for r in ends] == [r.progress for r in expected if r.epoch_ended]
    for one, two in zip(rows(alone), rows(together), strict=True):
        for name in ("loss", "std", "rank", "alignment"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name
        assert two["knn"] == pytest.approx(one["knn"], abs=0.02)  # a vote of neighbours may tip
    assert_same_weights(alone, together)
    record = Record.open(together)
    assert record.state == "finished"
    assert record.summary == pytest.approx(reports[-1].numbers)


def test_killed_workers_are_survived_while_there_is_progress_and_no_step_counted_twice(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_train, "RESTARTS", 1)
    run = run_of(2, "epochs=4")
    alone = [r for r in train(run_of(1, "epochs=4"), tmp_path / "alone") if r.epoch_ended]
    directory, epochs = started(run, tmp_path / "killed"), []
    for report in group(run, directory, cpus=1, gpus=0):
        if report.epoch_ended:
            epochs.append(report.progress.epoch)
        if report.epoch_ended and epochs in ([1], [1, 1, 2], [1, 1, 2, 2, 3]):
            os.kill(min(workers_of_this_process()), signal.SIGKILL)
    assert epochs == [1, 1, 2, 2, 3, 3, 4], "a new group repeats the epoch that it continues from, and continues"
    assert [row["loss"] for row in rows(directory)] == pytest.approx([r.metrics["loss"] for r in alone], rel=1e-3)
    assert Record.open(directory).state == "finished"


def test_workers_of_one_machine_listen_for_it_alone(session: None, tmp_path: Path):
    run, seen = run_of(2), set[str]()
    directory = started(run, tmp_path / "run")
    for report in group(run, directory, cpus=1, gpus=0):
        if report.epoch_ended and not report.done:
            sockets = [each for pid in workers_of_this_process() for each in psutil.Process(pid).net_connections()]
            seen |= {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    assert seen <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert seen
    assert not list(directory.glob("ray"))


def test_a_group_starts_again_in_spares_that_have_imported_all(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_train, "SPARE_AFTER", 0.0)
    run, spares, workers = run_of(2, "epochs=3"), set[int](), set[int]()
    for report in group(run, started(run, tmp_path / "run"), cpus=1, gpus=0):
        if report.epoch_ended and report.progress.epoch == 1 and not spares:
            eventually(lambda: len(idle_processes_with("torch")) == 2)
            spares = idle_processes_with("torch")
            os.kill(min(workers_of_this_process()), signal.SIGKILL)
        workers |= set(workers_of_this_process())
    assert spares <= workers


def test_a_group_whose_ray_has_ended_does_not_start_in_the_next(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    where, begun = ["here"], list[str]()
    monkeypatch.setattr(ray_train, "here", lambda: where[-1])

    def train_elsewhere() -> Any:
        begun.append(where[-1])
        (tmp_path / f"checkpoints/step-{len(begun)}.pt").touch()  # progress: a lost worker alone would be replaced
        where.append("elsewhere")
        raise WorkerCrashedError if len(begun) == 1 else ValueError

    (tmp_path / "checkpoints").mkdir()
    thread = ray_train.FitThread(train_elsewhere, tmp_path, exchange=None)
    thread.run()
    assert begun == ["here"]
    assert isinstance(thread.failure, WorkerCrashedError)


def test_who_ends_without_saving_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent = list[int]()
    monkeypatch.setattr(ray_train, "beats_in", lambda _: ["a worker"])
    monkeypatch.setattr(ray_train, "send", lambda _, number: sent.append(number) or len(sent) < 3)
    began = time.monotonic()
    ray_train._save(tmp_path)
    assert sent == [signal.SIGTERM, 0, 0]
    assert time.monotonic() - began < ray_train.PATIENCE


def idle_processes_with(library: str) -> set[int]:
    """Return the processes of Ray that wait for work, and have loaded a library."""
    found = set[int]()
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::IDLE"] and any(library in each.path for each in process.memory_maps()):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def eventually(holds: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_group_one_of_whose_workers_hangs_starts_again(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, seconds in {"EVERY": 1, "LEAST": 12, "START": 12}.items():
        monkeypatch.setattr(hangs, name, seconds)
    run = run_of(2, "epochs=3")
    directory, epochs = started(run, tmp_path / "hanging"), []

    def train_and_stop_a_worker() -> None:
        for report in train_on_workers(run, directory):
            if report.epoch_ended:
                epochs.append(report.progress.epoch)
            if epochs == [1]:
                os.kill(max(workers_of_this_process()), signal.SIGSTOP)

    with pytest.warns(Noted, match="hanging has reported nothing for .*; it is ended and starts again"):
        train_and_stop_a_worker()
    assert epochs == [1, 1, 2, 3]
    text = (directory / "artifacts/stacks.txt").read_text()
    assert text.count("it does not answer: it is stopped") == 1
    assert "in work" in text  # where the other worker waits for it
    assert Record.open(directory).state == "finished"


class Interrupted:
    """Interrupts this process where Python drops exceptions: Ray's own objects have such places, too."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_python_would_drop_ends_the_group(session: None, tmp_path: Path):
    directory = started(run := run_of(1, "epochs=40"), tmp_path / "run")
    with closing(train_on_workers(run, directory)) as reports:
        next(reports)
        Interrupted()
        with pytest.raises(KeyboardInterrupt):
            list(reports)
    assert checkpoints(directory), "what the interrupt ended is saved"
    # A thread that calls Ray after the end of the connection would end this process where it is.
    assert not any(isinstance(thread, ray_train.FitThread) for thread in threading.enumerate())
    wait_for_cpus(2)


def test_workers_whose_driver_was_killed_are_ended(session: None, tmp_path: Path):
    """Ray keeps their share of the machine while the job lives; `free` gives it back."""

    @ray.remote(num_cpus=0)
    class Driver:
        def start(self) -> tuple[str, int]:
            group = placement_group([{"CPU": 2}])
            ray.get(group.ready())
            return group.id.hex(), os.getpid()

    driver = Driver.remote()
    note, pid = ray.get(driver.start.remote())  # pyright: ignore
    (tmp_path / ".workers").write_text(note)
    os.kill(pid, signal.SIGKILL)
    time.sleep(1)
    assert ray.available_resources().get("CPU", 0) == 0
    free(tmp_path)
    wait_for_cpus(2)
    assert list(tmp_path.iterdir()) == []
    free(tmp_path)  # nothing to do
    (tmp_path / ".workers").write_text("0" * len(note))  # of a Ray that is no more
    free(tmp_path)


def wait_for_cpus(count: int) -> None:
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < count:
        assert time.monotonic() < until, "the workers still hold their share"
        time.sleep(0.2)
