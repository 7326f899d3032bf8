"""Is collapse seen, and is nothing else taken for it?

    python benchmarks/collapse.py --seeds 5 [--methods byol dino] [--out collapse.csv]

Methods without what keeps their embeddings apart, and the same methods whole, are trained for 200 steps on 320 digits,
on a convnet whose features are one mean. A line for each run: the least spread and rank of the embeddings after any
epoch, how many times their product fell since the first epoch, the least share of the untrained network's rank that the
features have, what part of the first epoch's loss the least one is (above the loss that only collapse reaches), and the
step after which the run is called collapsed (`eagleray.runs.evaluation.collapsed`).
"""

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from eagleray.blocks.losses import cosine_loss
from eagleray.config import load_run
from eagleray.config.registry import declared, find
from eagleray.config.run import LABELS
from eagleray.contracts.batch import Batch, Progress, StepResult
from eagleray.contracts.report import Report
from eagleray.loop import train
from eagleray.runs.evaluation import collapsed
from eagleray_methods.byol import BYOL
from eagleray_methods.dino import Centre
from eagleray_methods.simsiam import SimSiam

SHORT = ["data.limit=320", "batch_size=32", "epochs=20", "threads=1", "device=cpu", "precision=fp32"]
QUIET = ["evaluate.protocols=[collapse]", "data.validation=0.3"]
# The heads of the papers: a batch norm at their end, as in the small recipe, keeps embeddings apart for longer.
BYOL_HEAD = ("method.last_norm=false",)
DINO_HEAD = ("method.norm=false", "method.last_norm=false", "method.local_crops=0")


@dataclass(frozen=True)
class Case:
    """A method, and what is taken out of it."""

    method: str
    broken: str = ""  # nothing: it is healthy
    paper_head: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    target: type | None = None
    name: str = ""
    instead: Callable | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.broken or 'healthy'}{' (head of the paper)' if self.paper_head else ''}"

    @contextmanager
    def taken_out(self) -> Iterator[None]:
        """Replace the part for the block."""
        if self.target is None:
            yield
        else:
            with mock.patch.object(self.target, self.name, self.instead):
                yield


def byol_without_predictor(self: BYOL, batch: Batch, progress: Progress) -> StepResult:
    """Compare the embeddings themselves with the teacher's."""
    online = [self.projector(self.encoder(view)) for view in batch.views]
    with torch.no_grad():
        targets = [self.teacher(view) for view in batch.views]
    loss = cosine_loss(online[0], targets[1]) + cosine_loss(online[1], targets[0])
    return StepResult(loss, [z.detach() for z in online])


def byol_without_stop(self: BYOL, batch: Batch, progress: Progress) -> StepResult:
    """Predict the network's own embedding, with gradient."""
    online = [self.projector(self.encoder(view)) for view in batch.views]
    predicted = [self.predictor(z) for z in online]
    loss = cosine_loss(predicted[0], online[1]) + cosine_loss(predicted[1], online[0])
    return StepResult(loss, [z.detach() for z in online])


def simsiam_without_predictor(self: SimSiam, batch: Batch, progress: Progress) -> StepResult:
    """Compare the embeddings themselves."""
    first, second = (self.projector(self.encoder(view)) for view in batch.views)
    loss = cosine_loss(first, second.detach()) + cosine_loss(second, first.detach())
    return StepResult(loss / 4 - 1, [first.detach(), second.detach()])


def simsiam_without_stop(self: SimSiam, batch: Batch, progress: Progress) -> StepResult:
    """Let the gradient into the targets."""
    first, second = (self.projector(self.encoder(view)) for view in batch.views)
    loss = cosine_loss(self.predictor(first), second) + cosine_loss(self.predictor(second), first)
    return StepResult(loss / 4 - 1, [first.detach(), second.detach()])


FITTING = {
    "swav": ("method.prototypes=32",),
    "w_mse": ("method.sub_batch=32", "method.projection=16"),
}  # to batches of 32 images
METHODS = [name for name, one in declared("method").items() if not one.needs & LABELS and not one.needs_run]
BROKEN = [
    Case("byol", "without predictor", BYOL_HEAD, (), BYOL, "forward", byol_without_predictor),
    Case("byol", "without stop-gradient", BYOL_HEAD, (), BYOL, "forward", byol_without_stop),
    Case("byol", "without stop-gradient", (), (), BYOL, "forward", byol_without_stop),
    Case("simsiam", "without predictor", (), (), SimSiam, "forward", simsiam_without_predictor),
    Case("simsiam", "without stop-gradient", (), (), SimSiam, "forward", simsiam_without_stop),
    Case("dino", "without centring", DINO_HEAD, (), Centre, "update", lambda self, logits: None),
    Case("vicreg", "without its variance term", (), ("method.variance=0",)),
]
DAMAGED = [  # after 200 steps its embeddings have a third of their directions left, and still tell images apart
    Case("barlow_twins", "without its redundancy term", (), ("method.redundancy=0",)),
]
HEALTHY = [
    Case("byol", paper_head=BYOL_HEAD),
    Case("dino", paper_head=DINO_HEAD),
    *(Case(name, settings=FITTING.get(name, ())) for name in METHODS),
]


def settings(case: Case, seed: int) -> list[str]:
    """Return the settings of a run of 200 steps."""
    tokens = "tokens" in find("method", case.method).needs
    size = ["encoder.depth=1", "encoder.dim=32"] if tokens else ["encoder.width=8", "encoder.grid=1", "encoder.last=1"]
    return [f"method={case.method}", f"seed={seed}", *size, *SHORT, *QUIET, *case.paper_head, *case.settings]


def epochs(case: Case, seed: int) -> list[Report]:
    """Train 200 steps; return the reports after epochs."""
    with case.taken_out(), tempfile.TemporaryDirectory() as folder:
        return [r for r in train(load_run(None, settings(case, seed)), Path(folder)) if r.epoch_ended]


def main() -> None:
    """Print a line for each case and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--out", type=Path, help="where to write a row for each run, as CSV")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for case in [each for each in (*BROKEN, *DAMAGED, *HEALTHY) if each.method in options.methods]:
        end = find("method", case.method).values["collapsed_loss"]
        for seed in range(options.seeds):
            reports = epochs(case, seed)
            seen = [report.metrics for report in reports]
            first = next((number for number in range(len(seen)) if collapsed(seen[: number + 1], end)), None)
            flagged = "-" if first is None else reports[first].progress.step
            least = {key: min(report.metrics[key] for report in reports) for key in ("z_std", "z_rank", "rank_share")}
            extents = [report.metrics["z_std"] * report.metrics["z_rank"] for report in reports]
            least["fall"] = extents[0] / min(extents)
            if end is not None:
                least["loss"] = (min(each["loss"] for each in seen) - end) / (seen[0]["loss"] - end)
            numbers = "  ".join(f"{key} {value:6.3f}" for key, value in least.items())
            print(f"{case!s:52} seed {seed}  {numbers}  collapsed {flagged}", flush=True)
            shown = {key: f"{value:.4g}" for key, value in least.items()}
            rows.append({"case": str(case), "seed": seed, "collapsed": flagged, "loss": "", **shown})
            if options.out:
                with options.out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)


if __name__ == "__main__":
    main()
