"""How large a sweep is and what it will cost, before it starts."""

import heapq
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from eagleray.config import Run, Sweep
from eagleray.config.search_points import trial_count
from eagleray.config.settings import settings
from eagleray.contracts.machine import cores
from eagleray.runs.preflight import planned

STARTUP = 20.0  # seconds until Ray and the processes of the first trials are ready
SAME_COST = (
    "seed",
    "epochs",
    "steps",
    "device",
    "threads",
)  # beside numbers such as rates, temperatures and probabilities

SIZES = ("data.imbalance",)  # fractional numbers that decide how many steps an epoch has


@dataclass(frozen=True)
class Cost:
    """What runs of one kind cost, as a probe has measured."""

    start: float  # seconds until the first step
    step: float  # seconds
    steps: int  # of an epoch
    saving: float  # seconds of a checkpoint
    evaluation: float  # seconds of one after an epoch
    ending: float  # seconds of the one at the end
    checkpoint: int  # bytes
    images: int  # bytes of decoded images in the cache, which all runs of these images share

    def seconds(self, run: Run) -> float:
        """Return the seconds of a whole run."""
        epochs = self.epochs(run)
        evaluations = (epochs - 1) // run.evaluate.every
        saves = epochs // run.checkpoints.every_epochs
        training = (run.steps or epochs * self.steps) * self.step + saves * self.saving
        return self.start + training + evaluations * self.evaluation + self.ending

    def epochs(self, run: Run) -> int:
        """Return the epochs of a run, the last of which may be short."""
        return run.epochs or -(-(run.steps or 0) // self.steps)


@dataclass(frozen=True)
class Plan:
    """The cost of a sweep on this machine; unknown parts are None."""

    sweep: Sweep
    size: str  # in words
    at_once: int  # runs
    probes: int  # kinds of run of different cost
    seconds: float | None = None
    gpu_hours: float | None = None
    checkpoints: int | None = None  # bytes
    images: int | None = None  # bytes
    price: float | None = None


def size(sweep: Sweep, runs: Sequence[Run]) -> str:
    """Return a sweep's size in words: `6 points x 2 seeds = 12 runs, 120 epochs`.

    Args:
        sweep: the sweep.
        runs: its runs, as `planned`.
    """
    count = trial_count(sweep) if sweep.learns else len(runs)
    points = counted(count // sweep.seeds, "point")
    shown = f"{points} x {sweep.seeds} seeds = {count} runs" if sweep.seeds > 1 else counted(count, "run")
    units = {"epoch": [run.epochs or 0 for run in runs], "step": [run.steps or 0 for run in runs]}
    lengths = {unit: max(each) * count if sweep.learns else sum(each) for unit, each in units.items()}
    words = " and ".join(counted(length, unit) for unit, length in lengths.items() if length)
    return f"{shown}, {'at most ' if sweep.learns or is_upper_bound(sweep) else ''}{words}"


def length(run: Run) -> str:
    """Return how long a run trains, in words."""
    return counted(run.steps, "step") if run.steps else counted(run.epochs or 0, "epoch")


def is_upper_bound(sweep: Sweep) -> bool:
    """Return whether trials may end early."""
    return sweep.compares_every_epoch is not None and not sweep.changes_trials


def counted(number: int, word: str) -> str:
    """Return a number with its word: `1 run`, `1,200 runs`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def plan(
    sweep: Sweep, probe: Callable[[Run], Cost] | None, *, gpus: int = 0, price: float | None = None, floors: int = 0
) -> Plan:
    """Work out what a sweep costs on this machine.

    Args:
        sweep: the sweep.
        probe: measures a run of each kind; None: times and sizes stay unknown.
        gpus: of this machine.
        price: of a GPU hour, or of an hour of the machine if the trials use no GPU.
        floors: measurements of floors.
    """
    runs = planned(sweep)
    kinds = {kind(run): run for run in runs}
    at_once = packing(sweep, max(run.workers for run in runs), gpus)
    if probe is None:
        return Plan(sweep, size(sweep, runs), at_once, len(kinds))
    costs = {key: probe(run) for key, run in kinds.items()}
    seconds = [costs[kind(run)].seconds(run) for run in runs]
    if sweep.learns:  # its points are unknown: take each as the mean of the ends of its ranges
        seconds = [sum(seconds) / len(seconds)] * trial_count(sweep)
    slowest = max(cost.start + 2 * cost.ending for cost in costs.values())
    wall = STARTUP + makespan(seconds, at_once) + floors * slowest
    gpu_hours = sum(seconds) / 3600 * sweep.gpus_per_trial * max(run.workers for run in runs)
    kept = sum(
        cost.checkpoint * min(run.checkpoints.keep, cost.epochs(run)) for run in runs for cost in [costs[kind(run)]]
    )
    caches = {
        json.dumps([run.data.name, run.data.config.model_dump(mode="json")]): costs[kind(run)].images for run in runs
    }
    return Plan(
        sweep,
        size(sweep, runs),
        at_once,
        len(kinds),
        seconds=wall,
        gpu_hours=gpu_hours,
        checkpoints=kept * trial_count(sweep) // len(runs),
        images=sum(caches.values()),
        price=None if price is None else price * (gpu_hours or wall / 3600),
    )


def kind(run: Run) -> str:
    """Return what decides the cost of a run: all settings but seeds, epochs and fractional numbers."""
    table = settings(run).items()
    costs = {
        key: value for key, value in table if key not in SAME_COST and (key in SIZES or not isinstance(value, float))
    }
    return json.dumps(costs)


def packing(sweep: Sweep, workers: int, gpus: int) -> int:
    """Return how many runs train at once on this machine."""
    room = {sweep.cpus_per_trial: cores(), **({sweep.gpus_per_trial: gpus} if sweep.gpus_per_trial else {})}
    fitting = min(int(available / (share * workers)) for share, available in room.items())
    return min(max(1, fitting), sweep.concurrent or trial_count(sweep), trial_count(sweep))


def makespan(seconds: Iterable[float], at_once: int) -> float:
    """Return the time until all runs have ended.

    They start in order, each as soon as one of `at_once` places is free.
    """
    free = [0.0] * at_once
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def lines(plan: Plan) -> Mapping[str, str]:
    """Return a plan as words, by what they are about."""
    share = plan.sweep.gpus_per_trial
    told = {"runs": plan.size, "at once": f"{counted(plan.at_once, 'run')} on this machine"}
    if plan.seconds is None or plan.checkpoints is None or plan.images is None:
        return {**told, "time": f"unknown without probing {counted(plan.probes, 'kind')} of run; leave --no-probe out"}
    most = "at most " if is_upper_bound(plan.sweep) else ""
    told["time"] = f"{most}about {hours(plan.seconds)}"
    then = " while it runs" if plan.sweep.keep == "best" else ""
    told["disk"] = f"{size_of(plan.checkpoints)} of checkpoints{then}, {size_of(plan.images)} of cached images"
    if share:
        told["GPU hours"] = f"{most}about {plan.gpu_hours:.2g}"
    if plan.price is not None:
        told["price"] = f"{most}about {plan.price:,.2f}"
    return told


def hours(seconds: float) -> str:
    """Return a time as `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def size_of(count: float) -> str:
    """Return bytes as `3.1 MB`."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(max(count, 1)) // 3), len(units) - 1)
    return f"{count / 1000**power:.3g} {units[power]}"
