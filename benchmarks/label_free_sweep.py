"""Write sweeps/label_free.yaml: the runs that docs/label-free.md compares.

    python benchmarks/label_free_sweep.py

For each of five methods twelve settings, good and bad, that cover what people vary (a scrambled Sobol sequence), and
three that are meant to fail. benchmarks/label_free.py says what is done with them.
"""

import argparse
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import qmc

PATH = Path(__file__).parents[1] / "sweeps" / "label_free.yaml"
SETTINGS, SEED = 12, 7
Draw = Callable[[float], Any]  # a number from 0 to 1 -> a setting's value


def between(low: float, high: float) -> Draw:
    return lambda u: round(low + (high - low) * u, 3)


def by_factors(low: float, high: float) -> Draw:
    return lambda u: float(f"{low * (high / low) ** u:.3g}")


def one_of(*values: float) -> Draw:
    return lambda u: values[min(int(u * len(values)), len(values) - 1)]


OF_ALL: dict[str, Draw] = {
    "optimizer.lr": by_factors(1e-4, 2e-2),
    "augment.crop_min": between(0.08, 0.9),
    "augment.jitter": between(0, 1),
}
OWN: dict[str, dict[str, Draw]] = {
    "simclr": {"method.temperature": by_factors(0.03, 3)},
    "vicreg": {"method.variance": by_factors(0.3, 100), "method.covariance": by_factors(0.01, 10)},
    "byol": {"method.momentum": one_of(0, 0.5, 0.9, 0.99, 0.999)},
    "barlow_twins": {"method.redundancy": by_factors(5e-4, 0.5)},
    "dino": {"method.temperature": by_factors(0.05, 0.5), "method.teacher_temperature": between(0.02, 0.08)},
}
# What holds a method's embeddings apart is taken out; no view differs from another; a rate that no training survives.
BROKEN: dict[str, Mapping[str, Any]] = {
    "simclr": {"method.temperature": 0.01},
    "vicreg": {"method.variance": 0},
    "byol": {"method.momentum": 0, "method.last_norm": False},
    "barlow_twins": {"method.redundancy": 0},
    "dino": {"method.centre_momentum": 0.999, "method.norm": False, "method.last_norm": False},
}
STILL = {"augment.crop_min": 1, "augment.jitter": 0, "augment.flip": 0, "augment.grayscale": 0, "augment.blur": 0}
FAST = {"optimizer.lr": 0.04}

HEAD = """\
# Question: can a run be chosen without labels?
#
# Written by benchmarks/label_free_sweep.py: five methods with twelve settings each, by a Sobol sequence, and three
# planted failures each (the last three of a method). Every score is measured after every epoch.
#
# Cost: 150 runs. On 4,000 images of 32x32 pixels 87 minutes on two cores that had other work, too:
#     eagleray sweep sweeps/label_free.yaml data=folder data.root=PATH data.limit=4000 data.validation=0.2048
#     python benchmarks/label_free.py bank DIRECTORY && python benchmarks/label_free.py tables
# Finding: NESum behind a gate of the effective rank, `metric: label_free`, chooses runs 1.0 points of linear accuracy
# below the best; a random pick 3.7, RankMe 2.3, ten labels a class 1.2 (docs/label-free.md).
"""
SWEEP: dict[str, Any] = {
    "name": "label_free",
    "question": "Can a run be chosen without labels?",
    "run": {
        "data": {"name": "digits", "limit": 4000, "validation": 0.2048},  # of 10,000: 2,048 are validation images
        "epochs": 6,
        "batch_size": 256,
        "threads": 1,
        "encoder": {"width": 32, "grid": 1, "last": 1},
        "optimizer": {"name": "adamw", "lr": 2e-3},
        "evaluate": {
            "knn": {"k": 20},
            "linear": {"when": "end"},
            "few_labels": {"when": "end", "draws": 1},
            "spectrum": {"when": "always"},
            "lidar": {"when": "always", "images": 256},
            "dimension": {"when": "always"},
        },
    },
    "search": "grid",
    "seeds": 2,
    "metric": "linear",
    "floor": ["random"],
    "stop_collapsed": False,
}


def variants(method: str) -> list[dict[str, Any]]:
    """Return the settings of a method's runs."""
    draws = OF_ALL | OWN[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # twelve is no power of two; the first of sixteen are as even as any
        points = qmc.Sobol(len(draws), rng=SEED).random(SETTINGS).tolist()
    drawn = [{key: draw(u) for (key, draw), u in zip(draws.items(), point, strict=True)} for point in points]
    return [nested(method, flat) for flat in (*drawn, BROKEN[method], STILL, FAST)]


def nested(method: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted settings as sections."""
    sections: dict[str, Any] = {"method": {"name": method}}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PATH.write_text(written(), encoding="utf-8")


def written() -> str:
    """Return the sweep's file."""
    sweep = {**SWEEP, "vary": {"run": [each for method in OWN for each in variants(method)]}}
    return HEAD + yaml.safe_dump(sweep, sort_keys=False, default_flow_style=None, width=120)


if __name__ == "__main__":
    main()
