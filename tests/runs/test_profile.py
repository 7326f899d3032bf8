"""What makes a run slow is named, whichever stage it is; a run without profile makes no call more."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.optim import optimizer

from eagleray.config import load_run
from eagleray.data import loader, pixels
from eagleray.loop import train
from eagleray.runs import profile
from eagleray.runs.processes import two_processes
from eagleray.runs.profile import TRACED, WARM, Clock, Profile

SMALL = ["data.limit=128", "batch_size=16", "encoder.width=4", "threads=1", "device=cpu", "evaluate.linear.when=never"]
STEPS = 5  # counted; an epoch has 8
LONG = 60.0  # seconds that a slow call seems to take


class Slowness:
    """A clock that only slow calls move, so that no test has to wait, or depends on the machine.

    Args:
        patch: `setattr` of pytest's monkeypatch.
    """

    def __init__(self, patch: Callable[..., None]):
        self.patch, self.more = patch, 0.0
        patch(profile, "time", SimpleNamespace(perf_counter=lambda: self.more))

    def make_slow(self, owner: Any, name: str) -> None:
        """Let each call of a function, or each item of a generator function, seem to take long."""
        function = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            if isinstance(result, Iterator):
                return map(self._late, result)
            return self._late(result)

        self.patch(owner, name, call)

    def _late(self, value: Any) -> Any:
        self.more += LONG
        return value


def profiled(folder: Path, *settings: str) -> dict[str, Any]:
    """Return what the first worker writes; nothing on the others."""
    run = load_run(None, [*SMALL, *settings])
    reports = list(Profile(run, STEPS).reports(train, folder))
    assert [report.progress.step for report in reports if report.epoch_ended] == [WARM + STEPS + TRACED]
    assert not reports[-1].done  # what is measured only at the end of a run is not
    written = folder / "artifacts" / "profile.json"
    return json.loads(written.read_text()) if not dist.is_initialized() or dist.get_rank() == 0 else {}


def shares(found: dict[str, Any]) -> dict[str, float]:
    return {stage["name"]: stage["share"] for stage in found["stages"]}


SLOWED = {
    "loading": (pixels.Stored, "batches"),
    "views": (loader, "make_views"),
    "checkpoints": (os, "fsync"),
    "evaluation": (profile.Evaluation, "encode"),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", SLOWED)
def test_the_stage_that_is_slow_is_named(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Slowness(monkeypatch.setattr).make_slow(*SLOWED[stage])
    found = profiled(tmp_path)
    assert found["sentence"].startswith(f"{stage} takes ")
    assert shares(found)[stage] > 0.7
    assert sum(shares(found).values()) == pytest.approx(1)
    assert any(one["name"].startswith("aten::") and one["seconds"] > 0 for one in found["operators"])


@pytest.mark.slow
def test_a_run_of_few_steps_is_profiled_too(tmp_path: Path):
    assert profiled(tmp_path, "steps=2")["steps_per_epoch"] == 8


@pytest.mark.slow
def test_what_happens_once_in_an_epoch_counts_as_often_as_the_run_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Eight steps of 60 seconds each, 60 seconds of saving every fourth epoch: a share of 1 in 33."""
    slowness = Slowness(monkeypatch.setattr)
    slowness.make_slow(pixels.Stored, "batches")
    slowness.make_slow(torch, "save")
    found = profiled(tmp_path, "checkpoints.every_epochs=4", "evaluate.every=1000")
    assert found["steps_per_epoch"] == 8
    assert shares(found)["checkpoints"] == pytest.approx(1 / 33, rel=1e-3)
    assert shares(found)["loading"] == pytest.approx(32 / 33, rel=1e-3)


@pytest.mark.slow
def test_a_run_without_profile_makes_no_call_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not even after a profiled one in the same process: its hooks are gone."""
    profiled(tmp_path / "profiled")

    def called(*_: object) -> None:
        raise RuntimeError("the clock was read")

    monkeypatch.setattr(Clock, "enter", called)
    *_, last = train(load_run(None, [*SMALL, "epochs=1"]), tmp_path / "run")
    assert last.done
    assert not optimizer._global_optimizer_pre_hooks
    assert not optimizer._global_optimizer_post_hooks


def slow_network(folder: str) -> list[str]:
    """The longest stage of two workers whose gathering, and whose averaging of gradients, is slow."""
    torch.set_num_threads(1)
    named = []
    for owner, name in ((dist, "all_gather"), (profile, "allreduce_hook")):
        with pytest.MonkeyPatch.context() as patches:
            Slowness(patches.setattr).make_slow(owner, name)
            found = profiled(Path(folder, name), "workers=2")
        named += [found["stages"][0]["name"]] if found else []
    return named


@pytest.mark.slow
def test_a_slow_network_is_named(tmp_path: Path):
    assert two_processes(slow_network, str(tmp_path), timeout=200) == [["communication", "communication"], []]
