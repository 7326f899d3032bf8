"""What a run spends its time on, by stage.

The loop knows nothing of it: a profiled run is assembled with a loader, an evaluation and hooks that read the clock, so
that a run without profile makes no call more.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial, wraps
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity
from torch.profiler import profile as operators_of

from eagleray.blocks import distributed
from eagleray.config import Run, changed
from eagleray.contracts.batch import Batch
from eagleray.contracts.files import make_folder, write
from eagleray.contracts.report import Report
from eagleray.data.loader import BatchLoader
from eagleray.runs.assemble import Assembly, assemble
from eagleray.runs.evaluation import Evaluation

WARM = 3  # first steps that do not count: memory is allocated, kernels are chosen
TRACED = 3  # steps after the counted ones, slowed down by the recording of their operators
TOP = 8  # operators that are shown

# The stages, and what makes each shorter.
STEP = {
    "loading": "more cores, a data.memory_limit above the size of the images, more data.workers, or a smaller "
    "data.stored_size",
    "views": "fewer or cheaper operations on views (augment.only), or a GPU, which makes them too",
    "forward": "a smaller encoder or image_size, precision=bf16 on a GPU, or more workers",
    "backward": "a smaller encoder or image_size, precision=bf16 on a GPU, or more workers",
    "communication": "fewer workers with larger shares of the batch, or a faster network between them",
    "optimizer": "a larger batch_size, which takes fewer steps",
    "after the step": "what the method does in after_step, or a larger batch_size, which takes fewer steps",
}
EPOCH = {
    "before the epoch": "what the method does in before_epoch",
    "evaluation": "a larger evaluate.every, or evaluate.linear.when=end",
    "checkpoints": "a larger checkpoints.every_epochs, or tracking.runs on a faster disk",
}


@dataclass(frozen=True)
class Stage:
    """The time of one stage."""

    name: str
    seconds: float  # of one step; of one time, for what happens once in an epoch
    share: float  # of an epoch of the run


class Clock:
    """Adds up the seconds of each stage; one is on at a time.

    Args:
        device: its work is waited for whenever the stage changes.
    """

    def __init__(self, device: torch.device):
        self.seconds, self.times = defaultdict[str, float](float), Counter[str]()
        self.device, self.stage, self.since, self.is_paused = device, "before the epoch", time.perf_counter(), False

    def enter(self, stage: str, *, again: bool = False) -> None:
        """Begin a stage, which ends the one before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if not self.is_paused:
            self.seconds[self.stage] += now - self.since
            self.times[stage] += not again
        self.stage, self.since = stage, now

    @contextmanager
    def inside(self, stage: str) -> Iterator[None]:
        """Count a block to a stage, then go on with the stage around it."""
        around = self.stage
        self.enter(stage)
        yield
        self.enter(around, again=True)

    def timed(self, stage: str, function: Callable) -> Callable:
        """Return a function whose time counts to a stage."""

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.inside(stage):
                return function(*arguments, **options)

        return call


class TimedLoader(BatchLoader):
    """A loader whose one epoch has as many steps as are profiled.

    Args:
        built: the run, whose loader this one replaces.
        clock: what it tells the stages.
        steps: that count.
    """

    def __init__(self, built: Assembly, clock: Clock, steps: int):
        super().__init__(built.run, built.data, built.loader.info, built.method, built.device)
        self.clock, self.counted = clock, steps
        self.steps_per_epoch = WARM + steps + TRACED
        self.operators: list[dict[str, Any]] = []
        self._views = clock.timed("views", self._views)

    def epoch(self, epoch: int, start: int, stop: int | None = None) -> Iterator[Batch]:
        clock, loader = self.clock, super()
        batches = chain.from_iterable(loader.epoch(each, 0) for each in count())
        trace = operators_of(activities=_activities(self.device))
        for number in range(self.steps_per_epoch):
            if number == WARM:
                clock.seconds.clear()
                clock.times.clear()
            clock.enter("loading")
            if number == WARM + self.counted:
                clock.is_paused = True
                trace.start()
            batch = next(batches)
            clock.enter("after the step")
            yield batch
        trace.stop()
        self.operators = _longest(trace)
        clock.enter("after the epoch")
        clock.is_paused = False


class Profile:
    """A run of a few steps that finds out what takes its time.

    Args:
        run: the run that is to become faster.
        steps: that count.
    """

    def __init__(self, run: Run, steps: int):
        self.run, self.steps = run, steps

    def reports(self, train: Callable[..., Iterator[Report]], directory: Path, **options: Any) -> Iterator[Report]:
        """Train one short epoch with its evaluation and checkpoint; write `artifacts/profile.json`.

        Args:
            train: the loop.
            directory: of the run.
            options: of the loop.
        """
        # The epoch is not the last one, which is evaluated by other evaluators.
        run, own = self.run, WARM + self.steps + TRACED
        longer = {"steps": run.steps + own} if run.steps else {"epochs": (run.epochs or 0) + 1}
        short = changed(run, {"evaluate.every": 1, "checkpoints.every_epochs": 1, **longer})
        with ExitStack() as hooks:
            build = partial(self._build, hooks)
            for report in train(short, directory, build=build, **options):
                if report.epoch_ended:
                    self.clock.enter("before the epoch")
                    if distributed.rank() == 0:
                        self._write(directory / "artifacts" / "profile.json")
                yield report
                if report.epoch_ended:
                    return

    def _build(self, hooks: ExitStack, run: Run, **options: Any) -> Assembly:
        """Assemble the run with everything that tells the clock."""
        built = assemble(run, **options)
        self.clock = clock = Clock(built.device)
        self.epoch_steps = built.loader.steps_per_epoch
        self.loader = TimedLoader(built, clock, self.steps)
        evaluation = Evaluation(run, built.data, self.loader, built.evaluation.untrained)
        evaluation.of_untrained(evaluation.shown, built.autocast)  # once in a run, so no part of an epoch
        timed = {name: clock.timed("evaluation", getattr(evaluation, name)) for name in ("embed", "_measured")}
        vars(evaluation).update(timed)
        for handle in (
            built.forward.register_forward_pre_hook(lambda *_: clock.enter("forward")),
            built.forward.register_forward_hook(lambda *_: clock.enter("backward")),
            register_optimizer_step_pre_hook(lambda *_: clock.enter("optimizer")),
            register_optimizer_step_post_hook(lambda *_: clock.enter("after the step")),
            built.method.register_state_dict_pre_hook(lambda *_: clock.enter("checkpoints")),
        ):
            hooks.callback(handle.remove)
        if isinstance(built.forward, DistributedDataParallel):
            built.forward.register_comm_hook(clock, _waiting_allreduce)
            hooks.enter_context(distributed.measured(partial(clock.inside, "communication")))
        return replace(built, loader=self.loader, evaluation=evaluation)

    def stages(self) -> list[Stage]:
        """Return all stages, that of the largest share first."""
        seconds, times, run = self.clock.seconds, self.clock.times, self.run
        saved = 1 / run.checkpoints.every_epochs + self.epoch_steps / (run.checkpoints.every_steps or float("inf"))
        often = {"before the epoch": 1.0, "evaluation": 1 / run.evaluate.every, "checkpoints": saved}
        each = {name: seconds[name] / self.steps for name in STEP}
        each |= {name: seconds[name] / max(1, times[name]) for name in EPOCH}
        whole = {name: value * often.get(name, self.epoch_steps) for name, value in each.items()}
        stages = [Stage(name, value, whole[name] / sum(whole.values())) for name, value in each.items()]
        return sorted(stages, key=lambda stage: -stage.share)

    def _write(self, path: Path) -> None:
        stages = self.stages()
        facts = {
            "sentence": sentence(stages[0]),
            "stages": [asdict(stage) for stage in stages],
            "operators": self.loader.operators,
            "steps": self.steps,
            "steps_per_epoch": self.epoch_steps,
            "device": str(self.clock.device),
            "workers": self.run.workers,
        }
        make_folder(path.parent)
        write(path, json.dumps(facts, indent=1))


def sentence(stage: Stage) -> str:
    """Return what limits a run, and what helps."""
    return f"{stage.name} takes {stage.share:.0%} of an epoch; to shorten it: {(STEP | EPOCH)[stage.name]}"


def _waiting_allreduce(
    clock: Clock,
    bucket: dist.GradBucket,  # type: ignore[reportPrivateImportUsage]
) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of gradients, and wait for it.

    So the backward pass does not hide it, and the clock sees all of it.
    """
    group = dist.group.WORLD
    assert group is not None
    with clock.inside("communication"):
        averaged = allreduce_hook(group, bucket)
        averaged.wait()
    return averaged


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]


def _longest(trace: Any) -> list[dict[str, Any]]:
    """Return the operators that took longest, on the device if there is one."""
    rows = []
    for each in trace.key_averages():
        seconds = (each.self_device_time_total or each.self_cpu_time_total) / 1e6
        if not each.key.startswith(("Optimizer.", "ProfilerStep")):
            rows.append({"name": each.key, "seconds": seconds / TRACED, "calls": each.count // TRACED})
    return sorted(rows, key=lambda row: -row["seconds"])[:TOP]
