"""Failures in real sweeps: what is tried again, what is not, and when a sweep ends at once."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError
from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from eagleray.config import Sweep, validated
from eagleray.contracts.errors import Noted
from eagleray.contracts.report import Diverged, Failed
from eagleray.ray_backend import sweep as sweeps
from eagleray.ray_backend.failures import failure_of
from eagleray.ray_backend.sweep import sweep
from eagleray.ray_backend.workers import group
from eagleray.runs import hangs
from eagleray.runs.failures import failure_in, may_resume
from eagleray.runs.record import Record
from ray_sessions import two_cores

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

METHOD = '''"""Fails in its second step."""

import os
import signal
from pathlib import Path

from eagleray_methods.simclr import SimCLR


class Failing(SimCLR):
    """Fails as it is told."""

    class Config(SimCLR.Config):
        how: str = ""
        notes: str = ""

    def forward(self, batch, progress):
        if progress.step == 1:
            note = Path(self.config.notes, f"{self.config.how}-{self.data.seed}")
            starts = len(note.read_text()) if note.exists() else 0
            note.write_text("x" * (starts + 1))
            if self.config.how == "memory":
                raise MemoryError("no room")
            if self.config.how == "kill" and not starts:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.config.how == "hang" and not starts:
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.config.how == "bug" and not Path(self.config.notes, "repaired").exists():
                return [][self.data.seed]
        if self.config.how == "often" and progress.step % (progress.steps // progress.epochs) == 1:
            note = Path(self.config.notes, f"step-{progress.step}")
            if not note.exists():
                note.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if self.config.how == "notice":
            with Path(self.config.notes, "steps").open("a") as steps:
                steps.write(f"{progress.step} ")
            if progress.step + 1 < progress.steps:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(batch, progress)
'''


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start Ray with two cores and a method of one's own."""
    place = tmp_path_factory.mktemp("lab")
    (place / "failing_lab").mkdir()
    (place / "failing_lab/__init__.py").touch()
    (place / "failing_lab/failing.py").write_text(METHOD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.syspath_prepend(str(place))
        with two_cores():
            yield place


def a_sweep(notes: Path, vary: dict[str, Any], **more: Any) -> Sweep:
    run = {"method": {"name": "failing_lab.failing", "notes": str(notes), **more.pop("method", {})},
           "data": {"limit": 120}, "batch_size": 40, "encoder": {"name": "convnet", "width": 4}, "epochs": 1,
           "evaluate": {"linear": {"when": "never"}}, **more}  # fmt: skip
    return validated(Sweep, {"name": "s", "run": run, "search": "grid", "vary": vary, "floor": []})


def test_a_lost_worker_is_replaced_and_memory_is_never_tried_again_unchanged(session: Path, tmp_path: Path):
    question = a_sweep(tmp_path, {"method.how": ["memory", "kill", ""]})
    memory, killed, good = sorted(sweep(question, tmp_path / "sweep"), key=lambda record: record.name)
    assert {path.name: len(path.read_text()) for path in tmp_path.iterdir() if path.is_file()} == {
        "memory-0": 1, "kill-0": 2, "-0": 1
    }  # fmt: skip
    assert (killed.state, good.state) == ("finished", "finished")
    failure = failure_in(memory)
    assert failure is not None
    assert (failure.kind, failure.reason) == ("out of memory", "MemoryError: no room")
    assert "raise MemoryError" in (memory.artifacts / "error.txt").read_text()

    sweep(question, tmp_path / "sweep", resume=True)
    assert len((tmp_path / "memory-0").read_text()) == 1


def test_a_trial_that_has_notice_at_every_step_is_moved_each_time_and_repeats_none(
    session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sweeps, "RETRIES", 1)
    question = a_sweep(tmp_path, {"method.how": ["notice"]})
    (trial,) = sweep(question, tmp_path / "sweep")
    assert trial.state == "finished"
    assert (tmp_path / "steps").read_text() == "0 1 2 "


def test_a_trial_that_hangs_is_named_and_starts_again(session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, seconds in {"EVERY": 1, "LEAST": 12, "START": 12}.items():
        monkeypatch.setattr(hangs, name, seconds)
    with pytest.warns(
        Noted, match="has reported nothing for .*, and it does not compute; it is ended and starts again"
    ):
        trials = sweep(a_sweep(tmp_path, {"method.how": ["hang", ""]}), tmp_path / "sweep")
    assert [trial.state for trial in trials] == ["finished"] * 2
    assert len((tmp_path / "hang-0").read_text()) == 2
    (hung,) = (trial for trial in trials if trial.params["method.how"] == "hang")
    (stacks,) = tmp_path.rglob("stacks.txt")
    assert stacks == hung.artifacts / "stacks.txt"
    assert stacks.read_text().endswith("it does not answer: it is stopped\n")
    assert not list(tmp_path.rglob(".pulse*"))


def test_a_trial_may_lose_its_worker_as_often_as_it_makes_progress(
    session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sweeps, "RETRIES", 1)
    (trial,) = sweep(a_sweep(tmp_path, {"method.how": ["often"]}, epochs=3), tmp_path / "sweep")
    assert len(list(tmp_path.glob("step-*"))) == 3
    assert trial.state == "finished"
    assert [row["epoch"] for row in trial.metrics()] == [1, 2, 3]


def test_a_sweep_ends_at_once_if_its_first_trials_share_a_bug_and_resumes_when_it_is_put_right(
    session: Path, tmp_path: Path
):
    question = a_sweep(tmp_path, {"seed": [1, 2, 3, 4, 5, 6, 7, 8]}, method={"how": "bug"})
    with pytest.raises(Failed) as caught:
        sweep(question, tmp_path / "sweep")
    lines = str(caught.value).splitlines()
    assert len(lines) <= 15
    assert "its first 3 trials failed alike" in lines[0]
    assert "IndexError: list index out of range" in lines[0]
    assert "failing_lab/failing.py" in lines[1]
    assert lines[2].endswith("artifacts/error.txt")
    assert Path(lines[2].removeprefix("log: ")).is_file()
    assert lines[3] == f"next: put that right, then: eagleray sweep {tmp_path / 'sweep/run.yaml'} --resume"
    starts = [len(path.read_text()) for path in tmp_path.glob("bug-*")]
    assert set(starts) == {1}, "a bug is not tried again"
    assert 3 <= len(starts) < 8, "the others did not start"
    parent = Record.open(tmp_path / "sweep")
    assert {failure.kind for record in parent.children() if (failure := failure_in(record))} == {"bug"}
    assert may_resume(parent)

    (tmp_path / "repaired").touch()
    records = sweep(question, tmp_path / "sweep", resume=True)
    assert [record.state for record in records] == ["finished"] * 8


def test_a_bug_in_one_of_two_workers_is_not_tried_again(session: Path, tmp_path: Path):
    run = next(a_sweep(tmp_path, {"seed": [0]}, method={"how": "bug"}, workers=2, device="cpu").probes())
    Record.create(tmp_path / "run", name="r", experiment="e", params={}, run=run.file())
    with pytest.raises(Failed, match="IndexError") as caught:
        list(group(run, tmp_path / "run", cpus=1, gpus=0))
    assert caught.value.kind == "bug"
    assert not isinstance(caught.value, Diverged)
    assert len((tmp_path / "bug-0").read_text()) <= 2  # both workers write there, in one start


def test_errors_of_ray_are_put_into_their_classes():
    def kind(error: BaseException, **more: bool) -> str:
        return failure_of(error, **more).kind

    for error in (ActorDiedError(), WorkerCrashedError(), NodeDiedError("gone")):
        assert kind(error) == "infrastructure"
        assert kind(error, killed=True) == "out of memory"  # the kernel has killed a process meanwhile
    assert kind(OutOfMemoryError("Task was killed due to the node running low on memory")) == "out of memory"
    lost = WorkerGroupError("two failed", {0: RuntimeError("gloo: Connection closed by peer"), 1: MemoryError()})
    assert kind(lost) == "out of memory"
    for order in itertools.permutations([RuntimeError("Connection closed by peer"), IndexError("5")]):
        assert kind(WorkerGroupError("two failed", dict(enumerate(order)))) == "bug"
    assert isinstance(lost, TrainingFailedError)
    unhealthy = WorkerHealthCheckFailedError("a worker health check failed", ActorDiedError())
    assert kind(WorkerGroupError("one died", {0: unhealthy})) == "infrastructure"
