"""The notice before a process is ended: nothing is lost, whenever it comes, and one process or several agree."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.blocks import distributed
from eagleray.config import Run, load_run
from eagleray.contracts.report import Preempted, Report
from eagleray.loop import train
from eagleray.runs import state
from eagleray.runs.checkpoint import checkpoints, load_checkpoint
from eagleray.runs.evaluation import Evaluation
from eagleray.runs.notice import Notice
from eagleray.runs.processes import two_processes
from eagleray_methods.simclr import SimCLR

pytestmark = pytest.mark.slow

TINY = ["data.limit=160", "batch_size=40", "epochs=3", "encoder.width=4", "precision=fp32", "device=cpu", "threads=1",
        "evaluate.linear.when=never", "checkpoints.every_epochs=3"]  # fmt: skip
STEPS = 4  # of an epoch of TINY
ENDED = -1


def a_run(*more: str) -> Run:
    return load_run(None, [*TINY, *more])


def reports_of(run: Run, directory: Path, notice: Notice | None = None) -> list[Report]:
    """Train; return the reports until the end, or until the notice has ended it."""
    found, told = [], notice or Notice()
    try:
        for report in train(run, directory, notice=told):
            found.append(report)
    except type(told.error):
        assert told.came
    return found


def state_of(directory: Path) -> dict[str, Any]:
    return load_checkpoint(checkpoints(directory)[-1])


def assert_equal(one: Path, two: Path) -> None:
    """Compare weights, moments and counters of the newest checkpoints bit by bit."""
    a, b = state_of(one), state_of(two)
    assert a["counters"] == b["counters"]
    for part in (lambda s: s["method"], lambda s: s["optimizer"]["state"]):
        torch.testing.assert_close(part(a), part(b), rtol=0, atol=0)


def numbers(reports: list[Report]) -> list[dict[str, float]]:
    return [report.metrics for report in reports if report.epoch_ended]


def calling(step: int, told: Callable[[], None]) -> Callable[..., Any]:
    """Return SimCLR's forward, with a call in the middle of a step."""
    forward = SimCLR.forward

    def called(self: SimCLR, batch: Any, progress: Any) -> Any:
        if progress.step + 1 == step:
            told()
        return forward(self, batch, progress)

    return called


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    place = tmp_path_factory.mktemp("undisturbed")
    return place, numbers(reports_of(a_run(), place))


@pytest.mark.parametrize("step", [1, 5, 2 * STEPS, 3 * STEPS], ids=["first", "within an epoch", "its last", "the last"])
def test_a_signal_in_a_step_is_heeded_after_it(
    step: int, undisturbed: tuple[Path, list[dict[str, float]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, expected = undisturbed
    notice = Notice()
    with monkeypatch.context() as patch, notice.heeded(signal.SIGTERM):
        patch.setattr(SimCLR, "forward", calling(step, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        before = reports_of(a_run(), tmp_path, notice)
    assert state_of(tmp_path)["counters"]["step"] == before[-1].progress.step == step
    assert before[-1].checkpoint == checkpoints(tmp_path)[-1]
    after = reports_of(a_run(), tmp_path)
    assert numbers(before)[: step // STEPS] + numbers(after) == expected
    assert_equal(tmp_path, whole)


def test_a_signal_in_an_evaluation_ends_it_at_once_and_no_step_is_lost(
    undisturbed: tuple[Path, list[dict[str, float]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, expected = undisturbed
    notice, evaluated = Notice(Preempted("gone")), []

    def told(self: Evaluation, *_: Any, **more: Any) -> dict[str, float]:
        evaluated.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the evaluation goes on")

    with monkeypatch.context() as patch, notice.heeded(signal.SIGTERM):
        patch.setattr(Evaluation, "__call__", told)
        assert numbers(reports_of(a_run(), tmp_path, notice)) == []
    assert evaluated == [1]
    assert state_of(tmp_path)["counters"]["step"] == STEPS
    assert numbers(reports_of(a_run(), tmp_path)) == expected
    assert_equal(tmp_path, whole)


def test_a_signal_in_the_evaluation_of_a_short_last_epoch_loses_none_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = load_run(None, [*(each for each in TINY if not each.startswith("epochs=")), "steps=6", "evaluate.every=2"])
    expected, notice = numbers(reports_of(run, tmp_path / "whole")), Notice()

    def told(self: Evaluation, *_: Any, **more: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the evaluation goes on")

    with monkeypatch.context() as patch, notice.heeded(signal.SIGTERM):
        patch.setattr(Evaluation, "__call__", told)
        assert numbers(reports_of(run, tmp_path / "told", notice)) == expected[:1]
    assert state_of(tmp_path / "told")["counters"]["step"] == 6
    assert numbers(reports_of(run, tmp_path / "told")) == expected[1:]
    assert_equal(tmp_path / "told", tmp_path / "whole")


def test_a_second_signal_interrupts_where_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, notice = signal.getsignal(signal.SIGINT), Notice()

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while not notice.came:  # two signals that come at once are one
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        raise AssertionError("the step goes on")

    monkeypatch.setattr(SimCLR, "forward", calling(2, twice))
    with notice.heeded(signal.SIGINT):
        reports_of(a_run(), tmp_path, notice)
    assert checkpoints(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is before


def told_in_one_of_two(directory: str, step: int) -> list[int]:
    """Train in two processes, of which the second is told to end in the middle of a step; then go on."""
    torch.set_num_threads(1)
    state.AGREE_WITHIN = 0.0  # as if a step took longer
    notice, ends = Notice(Preempted("gone")), []
    if distributed.rank() == 1:
        SimCLR.forward = calling(step, lambda: threading.Thread(target=notice.give).run())
    for told in (notice, Notice()):
        try:
            for report in train(a_run("workers=2"), Path(directory), notice=told):
                ends.append(report.progress.step)
        except Preempted:
            ends.append(ENDED)
    return ends


@pytest.mark.parametrize("step", [2, STEPS], ids=["within an epoch", "its last"])
def test_several_workers_end_after_the_same_step_and_lose_none(step: int, tmp_path: Path):
    first, second = two_processes(told_in_one_of_two, str(tmp_path / "told"), step)
    assert first[first.index(ENDED) - 1] == second[second.index(ENDED) - 1] == step
    two_processes(told_in_one_of_two, str(tmp_path / "never"), 0)
    assert_equal(tmp_path / "told", tmp_path / "never")
