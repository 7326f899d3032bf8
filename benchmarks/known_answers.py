"""Ask questions whose answers are published, and see whether this platform's figures point the same way.

    python benchmarks/known_answers.py PATH [--only NAME]     # runs sweeps/known on the images in PATH
    python benchmarks/known_answers.py                        # makes docs/known-answers.md from the rows of runs

PATH is a folder with `train`, `val` (so that all seeds have the same validation images) and `test`, with class folders.
A claim says which of two points of a sweep is better. It agrees, or is contradicted, where the mean difference is
larger than its 95 % interval (`tables.half_width`); a point none of whose runs has a number, because they
collapsed, is worse than one that has some.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from tables import Row, cell, filled, half_width, markdown, read

ROOT = Path(__file__).parents[1]
PAGE, SWEEPS, ROWS = ROOT / "docs/known-answers.md", ROOT / "sweeps/known", ROOT / "docs/results/known"
METRIC = "linear"


@dataclass(frozen=True)
class Claim:
    """A published answer: one point of a sweep is better than another."""

    sweep: str
    better: dict[str, str]  # columns of runs.csv, and their values
    worse: dict[str, str]
    published: str  # where


SIMCLR, BYOL = "[SimCLR](https://arxiv.org/abs/2002.05709)", "[BYOL](https://arxiv.org/abs/2006.07733)"
ROTNET, VICREG = "[RotNet](https://arxiv.org/abs/1803.07728)", "[VICReg](https://arxiv.org/abs/2105.04906)"
ALL = "crop+flip+jitter+grayscale"
LR_SCALING = "optimizer.lr_scaling"
CLAIMS = (
    Claim("temperature", {"method.temperature": "0.1"}, {"method.temperature": "0.05"}, SIMCLR),
    Claim("temperature", {"method.temperature": "0.1"}, {"method.temperature": "1"}, SIMCLR),
    *(
        Claim("scaling", {"batch_size": size, LR_SCALING: "sqrt"}, {"batch_size": size, LR_SCALING: "linear"}, SIMCLR)
        for size in ("32", "64", "128")
    ),
    Claim("momentum", {"method.momentum": "0.99"}, {"method.momentum": "0.9"}, BYOL),
    Claim("momentum", {"method.momentum": "0.9"}, {"method.momentum": "1"}, BYOL),
    Claim("momentum", {"method.momentum": "0.9"}, {"method.momentum": "0"}, BYOL),
    Claim("views", {"augment.only": ALL}, {"augment.only": "flip+jitter+grayscale"}, SIMCLR),
    Claim("views", {"augment.only": ALL}, {"augment.only": "crop+flip"}, BYOL),
    Claim("views", {"augment.only": ALL}, {"augment.only": "crop+flip+grayscale"}, BYOL),
    Claim("views", {"augment.only": ALL}, {"augment.only": "crop+flip+jitter"}, BYOL),
    Claim("views", {"augment.only": ALL}, {"augment.only": "crop+jitter+grayscale"}, BYOL),
    Claim("rotations", {"run": "rotnet rotations=4"}, {"run": "rotnet rotations=2"}, ROTNET),
    Claim("rotations", {"run": "rotnet rotations=4"}, {"run": "rotnet rotations=8"}, ROTNET),
    Claim("vicreg", {"run": "vicreg"}, {"run": "vicreg covariance=0"}, VICREG),
    Claim("vicreg", {"run": "vicreg"}, {"run": "vicreg variance=0"}, VICREG),
)
HEAD = ("question", "published as better", "than", "where", "better: linear", "than: linear", "difference", "verdict")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, metavar="PATH", nargs="?", help="run the sweeps on these")
    names = sorted(file.stem for file in SWEEPS.glob("*.yaml"))
    parser.add_argument("--only", choices=names, help="one of the sweeps")
    typed = parser.parse_args()
    if typed.images:
        for name in [typed.only] if typed.only else names:
            run(name, typed.images)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def run(name: str, images: Path) -> None:
    """Run a sweep and keep its rows."""
    import eagleray

    sweep = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text(encoding="utf-8"))
    sweep["run"]["data"]["root"] = str(images.absolute())
    result = eagleray.sweep(sweep)
    print(f"{name}: {result.finding}")
    ROWS.mkdir(parents=True, exist_ok=True)
    (ROWS / f"{name}.csv").write_bytes((result.directory / "artifacts/runs.csv").read_bytes())


def page(text: str) -> str:
    """Return the page with its table made again."""
    return filled(text, {"known_answers": table})


def table() -> str:
    """Return the claims whose sweeps have been run, with figures and verdicts."""
    lines = []
    for claim in CLAIMS:
        if (ROWS / f"{claim.sweep}.csv").exists():
            rows = read(f"known/{claim.sweep}")
            better, worse = (of_point(rows, point) for point in (claim.better, claim.worse))
            difference, verdict = judged(rows, better, worse)
            question = yaml.safe_load((SWEEPS / f"{claim.sweep}.yaml").read_text(encoding="utf-8"))["question"]
            names = (", ".join(point.values()) for point in (claim.better, claim.worse))
            cells = (cell(better, METRIC), cell(worse, METRIC))
            lines.append([question, *names, claim.published, *cells, difference, verdict])
    return markdown(HEAD, lines)


def of_point(rows: Sequence[Row], point: dict[str, str]) -> list[Row]:
    """Return the runs of a point.

    Raises:
        KeyError: the sweep has none.
    """
    found = [row for row in rows if all(row[column] == value for column, value in point.items())]
    if not found:
        raise KeyError(f"no run has {point}")
    return found


def judged(rows: Sequence[Row], better: Sequence[Row], worse: Sequence[Row]) -> tuple[str, str]:
    """Return the difference of two points with its interval, and what it says of a claim."""
    means = [[float(row[METRIC]) for row in point if row[METRIC]] for point in (better, worse)]
    if not all(means):
        return "", "agrees: collapsed" if means[0] else "contradicted: collapsed"
    difference = sum(means[0]) / len(means[0]) - sum(means[1]) / len(means[1])
    half = half_width(rows, "trial", METRIC)
    verdict = "agrees" if difference > half else "contradicted" if difference < -half else "not shown"
    return f"{difference:+.3f} ± {half:.3f}", verdict


if __name__ == "__main__":
    main()
