"""Compare with stable-pretraining at the same budget: its masks, heads, targets and losses, everything else ours.

    pip install stable-pretraining==0.1.8
    python benchmarks/against_stable_pretraining.py FOLDER [--methods simmim ijepa] [--seeds 3] [--out rows.csv]

Views, encoder, initial weights (I-JEPA's are divided by depth), teacher with its momentum, batch, optimizer, schedule,
precision and evaluation are those of `eagleray train method=NAME` with the ViT of sweeps/methods.yaml; so is the share
of hidden patches, but for I-JEPA's. FOLDER has `train`, `val` and `test`, with images in class folders. A row is a run.
MSN and LeJEPA are in against_lightly.py.
"""

import argparse
import importlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rows import written
from torch import Tensor, nn

from eagleray.config import load_run
from eagleray.contracts.batch import Batch, Progress, StepResult
from eagleray.loop import train
from eagleray.runs.assemble import Assembly, assemble, images_of


def simmim(ours: Any) -> nn.Module:
    """Build SimMIM, which hides single patches."""
    return theirs("SimMIM")(**vit(ours), mask_ratio=ours.config.mask_ratio)


def maskfeat(ours: Any) -> nn.Module:
    """Build MaskFeat, which hides single patches and predicts one histogram of each channel."""
    return theirs("MaskFeat")(**vit(ours), mask_ratio=ours.config.mask_ratio)


def data2vec(ours: Any) -> nn.Module:
    """Build data2vec, which hides single patches, with our teacher."""
    arguments = vit(ours)
    del arguments["patch_size"]
    made = theirs("Data2Vec")(**arguments, top_k_blocks=ours.blocks, mask_ratio=ours.config.mask_ratio)
    made.encoder.teacher = ours.teacher.vit
    return made


def ijepa(ours: Any) -> nn.Module:
    """Build I-JEPA with our teacher; it divides the first weights of our encoder by depth, and so the teacher's."""
    c = ours.config
    made = theirs("IJEPA")(ours.encoder.vit, c.predictor_dim, c.predictor_depth, num_targets=c.targets)
    ours.teacher.load_state_dict(ours.encoder.state_dict())
    made.encoder.teacher = type(made.encoder.student)(ours.teacher.vit)
    # The features that are evaluated are those that its loss is of, which sees no class token.
    ours.teacher.forward = partial(without_class_token, ours.teacher)
    return made


def without_class_token(encoder: Any, images: Tensor) -> Tensor:
    """Encode patches alone, and average them, [N, C, S, S] -> [N, dim]."""
    return encoder.vit.norm(encoder.vit.blocks(encoder.patches(images))).mean(1)


def theirs(name: str) -> Any:
    """Return a method of the library."""
    return getattr(importlib.import_module(f"stable_pretraining.methods.{name.lower()}"), name)


def vit(ours: Any) -> dict[str, Any]:
    """Return our network, and what it says of itself, as their methods take it."""
    return {
        "encoder_name": ours.encoder.vit,
        "patch_size": ours.encoder.patch_size,
        "image_size": ours.data.image_size,
    }


METHODS: dict[str, Callable[[Any], nn.Module]] = {
    "simmim": simmim,
    "maskfeat": maskfeat,
    "data2vec": data2vec,
    "ijepa": ijepa,
}


class Step(nn.Module):
    """One step of their method on our view."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        made = self.method(batch.views[0])
        embedded = made.embedding.detach()
        return StepResult(made.loss, [embedded.mean(1) if embedded.ndim == 3 else embedded])


def by_theirs(*arguments: Any, **settings: Any) -> Assembly:
    """Build a run of ours whose steps are theirs; our heads get no gradient, and so stay as they are."""
    built = assemble(*arguments, **settings)
    method = METHODS[built.run.method.name](built.method).to(built.device)
    built.method.add_module("theirs", method)  # so that it is trained
    return replace(built, forward=Step(method))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="NAME, or 'NAME method.SETTING=VALUE ...'")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    if unknown := [name for name in a.methods if name.split()[0] not in METHODS]:
        parser.error(f"--methods: {', '.join(unknown)} is not among {', '.join(METHODS)}")
    shared = ["data=folder", f"data.root={a.folder}", f"epochs={a.epochs}", f"evaluate.every={a.epochs}", "threads=1"]
    shared += ["encoder=vit_tiny", "encoder.depth=4", "encoder.dim=128", "batch_size=128"]
    with written(a.out, "method", "seed", "linear", "knn") as add, tempfile.TemporaryDirectory() as scratch:
        for seed in range(a.seeds):
            for name in a.methods:
                run = load_run(None, [*shared, f"seed={seed}", *f"method={name}".split()])
                *_, last = train(run, Path(scratch) / f"{name}-{seed}", data=images_of(run), build=by_theirs)
                add(name.replace("method.", ""), seed, last.metrics["linear"], last.metrics["knn"])


if __name__ == "__main__":
    main()
