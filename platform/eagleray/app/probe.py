"""Measure what a run costs: twenty steps and two evaluations."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from eagleray.app.plan import Cost
from eagleray.config import Run, Sweep
from eagleray.config.run import changed
from eagleray.loop import train
from eagleray.runs.assemble import Assembly, assemble
from eagleray.runs.checkpoint import last_state, save_checkpoint
from eagleray.runs.floors import floors
from eagleray.runs.preflight import planned

STEPS = 20


def probe(run: Run) -> Cost:
    """Train a run for twenty steps, in this process, and evaluate it.

    Of several workers, one is measured.
    """
    batch_size = run.batch_size
    run = changed(run, {"batch_size": run.batch_size // run.workers, "workers": 1})
    before = torch.get_num_threads()
    torch.set_num_threads(run.threads or before)
    try:
        began = time.perf_counter()
        built = assemble(run)
        start = time.perf_counter() - began
        step, saving, checkpoint = _training(run)
        evaluation, ending = (_evaluation(built, final=final) for final in (False, True))
    finally:
        torch.set_num_threads(before)
    return Cost(
        start=start,
        step=step,
        steps=len(built.data.train) // batch_size,
        saving=saving,
        evaluation=evaluation,
        ending=ending,
        checkpoint=checkpoint,
        images=built.data.train.stored,
    )


def _training(run: Run) -> tuple[float, float, int]:
    """Return the seconds of a step and of saving, and the bytes saved.

    The first half of the steps warms up.
    """
    kind, length = ("steps", run.steps) if run.steps else ("epochs", run.epochs or 0)
    most = length + STEPS
    longer = {kind: most, "evaluate.every": most, "checkpoints.every_steps": STEPS // 2}
    with TemporaryDirectory() as folder:
        directory, times, saved = Path(folder), dict[int, float](), dict[int, Path | None]()
        for report in train(changed(run, longer), directory):
            step = report.progress.step
            times[step], saved[step] = time.perf_counter(), report.checkpoint
            if step >= STEPS:
                break
        state = last_state(directory)
        began = time.perf_counter()
        size = save_checkpoint(directory, state, keep=1).stat().st_size
        saving = time.perf_counter() - began
    saves = {path for step, path in saved.items() if step > STEPS // 2} - {saved[STEPS // 2]}
    taken = times[STEPS] - times[STEPS // 2] - len(saves - {None}) * saving
    return max(taken, 0) / (STEPS - STEPS // 2), saving, size


def _evaluation(built: Assembly, *, final: bool) -> float:
    began = time.perf_counter()
    built.evaluation(built.method, built.autocast, final=final)
    return time.perf_counter() - began


def gpus() -> int:
    """Return the GPUs of this machine."""
    return torch.cuda.device_count()


def floor_count(sweep: Sweep) -> int:
    """Return how many floors a sweep measures."""
    return sum(1 for _ in floors(planned(sweep), sweep.floor, sweep.metric))
