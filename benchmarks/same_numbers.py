"""Compare what every method computes in two checkouts: twenty steps of each, every number to its last digit.

    git worktree add OLD COMMIT
    python benchmarks/same_numbers.py OLD . --images FOLDER

A refactoring must not change a number. Each method trains for ten epochs of two steps on 128 images of a folder
with class sub-folders; the loss, the method's own metrics, kNN and linear probe of both checkouts are then compared as
floats. It prints one line for each method: `same`, or the numbers that differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = [
    "data=folder", "data.limit=128", "batch_size=64", "epochs=10", "threads=1", "device=cpu",
    "evaluate.every=5", "evaluate.test=false", "data.validation=0.02", "checkpoints.keep=1",
    "checkpoints.every_epochs=10",
]  # fmt: skip
NEIGHBOURS = ("evaluate.k=20", "evaluate.knn.k=20")  # before and since evaluators have settings of their own
PLAN = {  # settings that a method needs at 128 images; RUN stands for the newest run of a method
    "deepcluster": ["method.clusters=16"],
    "distillation": ["method.teacher=RUN:finetune", "labels.per_class=4"],
    "fixmatch": ["labels.per_class=4"],
    "finetune": ["encoder.run=RUN:simclr_v2", "labels.per_class=4"],
    "supervised": ["labels.per_class=4"],
    "swav": ["method.prototypes=32", "method.queue=0"],
    "moco": ["method.queue=256"],
    "nnclr": ["method.queue=256"],
    "ibot": ["encoder.depth=2", "encoder.dim=64"],
    "mae": ["encoder.depth=2", "encoder.dim=64"],
    "w_mse": ["method.sub_batch=64", "method.projection=32"],
}
LAST = ("finetune", "distillation")  # they need runs of other methods
CHILD = """
import importlib.util, json, sys
where = "eagleray.app.cli" if importlib.util.find_spec("eagleray.app") else "eagleray.cli"
main = getattr(importlib.import_module(where), "main")
for arguments in json.load(sys.stdin):
    sys.argv = ["eagleray", *arguments]
    for place, text in enumerate(sys.argv):
        if "=RUN:" in text:
            key, _, method = text.partition("=RUN:")
            import glob
            sys.argv[place] = f"{key}={sorted(glob.glob(f'runs/same/*-{method}'))[-1]}"
    try:
        main()
    except SystemExit as end:
        if end.code:
            print(f"{' '.join(arguments)} ended with {end.code}", file=sys.stderr)
"""


def numbers(checkout: Path, images: Path, methods: list[str]) -> dict[str, list[dict]]:
    """Return what each method reports after each epoch, without times."""
    reported = {}
    neighbours = NEIGHBOURS[(checkout / "platform/eagleray/contracts/evaluator.py").exists()]
    with tempfile.TemporaryDirectory() as folder:
        wanted = [
            ["train", f"method={name}", f"data.root={images}", *SETTINGS, neighbours, *PLAN.get(name, []),
             f"tracking.uri=sqlite:///{folder}/mlflow.db", "tracking.experiment=same"]
            for name in methods
        ]  # fmt: skip
        paths = os.pathsep.join(str(checkout / part) for part in ("platform", "methods"))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CHILD]
        subprocess.run(command, input=json.dumps(wanted), text=True, cwd=folder, env=environment, check=True)
        for name in methods:
            for file in Path(folder).glob(f"runs/same/*-{name}/metrics.jsonl"):
                rows = [json.loads(line) for line in file.read_text().splitlines()]
                reported[name] = [{k: v for k, v in row["metrics"].items() if k != "images_per_second"} for row in rows]
    return reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs=2, help="a checkout, or a JSON file that --save wrote")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--save", type=Path, help="keep the numbers of the first checkout here")
    parser.add_argument("--methods", nargs="*")
    given = parser.parse_args()
    files = (given.checkouts[0].resolve() / "methods/eagleray_methods").glob("[a-z]*.py")
    methods = given.methods or sorted(
        (file.stem for file in files), key=lambda name: (name in LAST, name != "finetune", name)
    )
    if given.checkouts[0].suffix == ".json":
        before = json.loads(given.checkouts[0].read_text())
        methods = given.methods or list(before)
    else:
        before = numbers(given.checkouts[0].resolve(), given.images.resolve(), methods)
    if given.save:
        given.save.write_text(json.dumps(before))
    after = numbers(given.checkouts[1].resolve(), given.images.resolve(), methods)
    for name in methods:
        print(f"{name:<14} {compared(before.get(name), after.get(name))}")


def compared(before: list[dict] | None, after: list[dict] | None) -> str:
    if not before or not after:
        return "missing in the " + ("first" if not before else "second")
    if len(before) != len(after):
        return f"{len(before)} epochs and {len(after)}"
    differing: dict[str, str] = {}
    for epoch, (one, other) in enumerate(zip(before, after, strict=True), 1):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                differing.setdefault(key, f"{key} {one.get(key)} -> {other.get(key)} (epoch {epoch})")
    count = sum(map(len, before))
    return "; ".join(differing.values()) or f"same ({count} numbers)"


if __name__ == "__main__":
    main()
