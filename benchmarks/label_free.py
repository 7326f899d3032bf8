"""Can a run be chosen without labels? The bank of sweeps/label_free.yaml, and the tables of docs/label-free.md.

    python benchmarks/label_free.py bank DIRECTORY    # of the sweep: writes docs/results/label_free.csv
    python benchmarks/label_free.py tables            # fills in docs/label-free.md, from these rows alone

A row is an epoch of a run. Scores without labels are of the same validation images for all runs of a seed; labels
judge: `linear` and `knn` of the last epoch are the accuracies that a choice should reach.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from choosing import (
    WORST,
    Scores,
    area,
    chance,
    difference,
    fitted_elsewhere,
    halved,
    holm,
    interval,
    kendall,
    random_regret,
    regrets,
    spent,
    standardised,
)
from numpy.typing import NDArray
from tables import DOCS, filled, markdown

from eagleray.config.registry import find
from eagleray.evaluators.collapse import GATE
from eagleray.runs.evaluation import collapsed
from eagleray.runs.record import Record

BANK, PAGE = DOCS / "results" / "label_free.csv", DOCS / "label-free.md"
PLANTED = ("broken", "still", "fast")  # the last settings of a method, as benchmarks/label_free_sweep.py plants them
SETTINGS = 15  # of each method
RUNGS = (1, 2, 6)  # epochs after which successive halving compares
RANDOM = "random"
LEFT_OUT = ("time", "step", "test_", "images_per_second")  # the speed is that of a shared machine
Row = Mapping[str, Any]


def rows_of(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a sweep: of its runs, an epoch each, and of the network before any training."""
    for record in sorted(Record.open(directory).children(), key=lambda record: record.name):
        run = record.file()
        named = {"method": RANDOM, "seed": run["seed"], "state": record.state}
        if record.tags.get("kind") != "floor":
            setting = int(record.name.split("-")[0]) % SETTINGS
            planted = PLANTED[setting - SETTINGS] if setting >= SETTINGS - len(PLANTED) else ""
            named |= {"method": run["method"]["name"], "setting": setting, "planted": planted}
        for row in record.metrics():
            shown = {
                name: f"{value:.5g}" for name, value in row.items() if not name.startswith(("time", "step", "test_"))
            }
            yield {**named, **shown, "epoch": int(row.get("epoch", 0))}


def write_bank(directory: Path) -> None:
    rows = list(rows_of(directory))
    names = dict.fromkeys(["method", "setting", "planted", "seed", "state", "epoch", *(n for row in rows for n in row)])
    with BANK.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(names), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class Bank:
    """The rows, as arrays [methods, settings, seeds]."""

    rows: Sequence[Row]
    known: dict[tuple[str, int], Scores] = field(default_factory=dict)  # numbers looked up already

    @classmethod
    def read(cls) -> "Bank":
        with BANK.open(newline="", encoding="utf-8") as file:
            return cls(list(csv.DictReader(file)))

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row["method"] for row in self.rows if row["method"] != RANDOM))

    @cached_property
    def seeds(self) -> list[str]:
        return sorted({row["seed"] for row in self.rows})

    @cached_property
    def last(self) -> int:
        return max(int(row["epoch"]) for row in self.rows)

    def values(self, name: str, epoch: int | None = None) -> Scores:
        """Return a number after an epoch, by default the last; NaN where a run has none."""
        key = (name, epoch or self.last)
        if key not in self.known:
            found = np.full((len(self.methods), SETTINGS, len(self.seeds)), np.nan)
            for place, rows in self.runs.items():
                found[place] = next(
                    (float(row[name]) for row in rows if int(row["epoch"]) == key[1] and row[name]), np.nan
                )
            self.known[key] = found
        return self.known[key]

    @cached_property
    def runs(self) -> Mapping[tuple[int, int, int], list[Row]]:
        """The rows of each run, by its place in the arrays."""
        found: defaultdict[tuple[int, int, int], list[Row]] = defaultdict(list)
        for row in self.rows:
            if row["method"] != RANDOM:
                place = self.methods.index(row["method"]), int(row["setting"]), self.seeds.index(row["seed"])
                found[place].append(row)
        return found

    def random(self, name: str) -> Scores:
        """Return a number of the untrained network, [seeds]."""
        known = {row["seed"]: float(row[name]) for row in self.rows if row["method"] == RANDOM}
        return np.array([known[seed] for seed in self.seeds])

    def truth(self, name: str) -> Scores:
        """Return an accuracy; a run that has none is worth a guess."""
        return np.nan_to_num(self.values(name), nan=0.1)

    @cached_property
    def healthy(self) -> NDArray[np.bool_]:
        """Whether training did good: [methods, settings], by both seeds better than the untrained network."""
        return np.asarray((self.truth("linear") > self.random("linear")).all(-1))

    @cached_property
    def is_planted(self) -> NDArray[np.bool_]:
        return np.arange(SETTINGS) >= SETTINGS - len(PLANTED)


# Scores: higher is better


Score = Callable[[Bank, int], Scores]  # of the runs after an epoch


def plain(name: str, sign: int = 1) -> Score:
    """Score by a number as it is."""
    return lambda bank, epoch: sign * bank.values(name, epoch)


def gated(name: str, sign: int = 1) -> Score:
    """Score by a number where the effective rank is at least half of the untrained network's, else by that rank."""

    def score(bank: Bank, epoch: int) -> Scores:
        rank, value = bank.values("rank", epoch), sign * bank.values(name, epoch)
        return np.where(rank >= GATE * bank.random("rank"), value, WORST / 2 + rank)

    return score


def sum_of(*names: str) -> Score:
    """Score by a sum of numbers that are standardised within the compared runs."""
    return lambda bank, epoch: np.sum([standardised(ranked(bank.values(name, epoch))) for name in names], 0)


SCORES: dict[str, Score] = {
    "gated NESum": gated("nesum"),
    "NESum": plain("nesum"),
    "participation ratio": plain("participation_ratio"),
    "RankMe": plain("rankme"),
    "effective rank": plain("rank"),
    "stable rank": plain("stable_rank"),
    "alpha-ReQ (near 1)": lambda bank, epoch: -np.abs(bank.values("alpha", epoch) - 1),
    "LiDAR": plain("lidar"),
    "signal": plain("signal"),
    "TwoNN": plain("twonn"),
    "IdEst (low)": plain("idest", -1),
    "gated IdEst (low)": gated("idest", -1),
    "CLID": sum_of("twonn", "learnable"),
    "SelfCluster (low)": plain("self_cluster", -1),
    "std": plain("std"),
    "uniformity (low)": plain("uniformity", -1),
    "training loss (low)": plain("loss", -1),
}
PRIMARY, RIVAL = "gated NESum", "RankMe"
LEARNT = ("nesum", "rankme", "rank", "lidar", "signal", "twonn", "self_cluster", "std", "uniformity")
AT_END = "linear probe, ten labels a class"  # not measured before
WITH_LABELS: dict[str, Score] = {AT_END: plain("linear_few"), "kNN": plain("knn")}


def ranked(values: Scores) -> Scores:
    """Return scores without NaN: a run that has none is the worst."""
    return np.nan_to_num(values, nan=WORST, posinf=-WORST, neginf=WORST)


def score_of(name: str, bank: Bank, epoch: int | None = None) -> Scores:
    return ranked((SCORES | WITH_LABELS)[name](bank, epoch or bank.last))


# Tables


def correlations(bank: Bank) -> str:
    """How well scores order runs: all of them, and the healthy ones alone."""
    linear, knn = bank.truth("linear"), bank.truth("knn")
    adjusted = dict(zip(SCORES, holm([chance(score_of(name, bank), linear) for name in SCORES]), strict=True))
    lines = []
    for name in (*SCORES, *WITH_LABELS):
        score = score_of(name, bank)
        lines.append(
            [
                name,
                with_interval(score, linear),
                " / ".join(f"{kendall(score[..., [n]], linear[..., [n]]):.2f}" for n in range(len(bank.seeds))),
                with_interval(score, linear, bank.healthy),
                with_interval(together(score), together(linear)),
                with_interval(score, knn) if name != "kNN" else "",
                f"{kendall(score_of(name, bank, 1), linear):+.2f}" if name != AT_END else "",
                f"{adjusted[name]:.3f}" if name in adjusted else "",
            ]
        )
    learnt = fitted_elsewhere([ranked(bank.values(name)) for name in LEARNT], linear)
    lines.insert(len(SCORES), ["fitted on the other four methods", with_interval(learnt, linear), *[""] * 6])
    head = [
        "score",
        "linear, all runs",
        "by seed",
        "linear, healthy runs",
        "linear, all methods together",
        "kNN, all runs",
        "after epoch 1",
        "p (Holm)",
    ]
    low, high = difference(score_of(PRIMARY, bank), score_of(RIVAL, bank), linear)
    return markdown(head, lines) + f"\n\n± {PRIMARY} less {RIVAL}, 95 %: {low:+.2f} to {high:+.2f}"


def by_method(bank: Bank) -> str:
    """The same within each method, of all its runs."""
    linear = bank.truth("linear")
    lines = []
    for name in (*SCORES, *WITH_LABELS):
        score = score_of(name, bank)
        taus = [kendall(score[[m]], linear[[m]]) for m in range(len(bank.methods))]
        lines.append([name, *(f"{tau:+.2f}" for tau in taus)])
    return markdown(["score", *bank.methods], lines)


def losses(bank: Bank) -> str:
    """What a choice loses, in points of linear."""
    linear = bank.truth("linear")
    learnt = fitted_elsewhere([ranked(bank.values(name)) for name in LEARNT], linear)
    found = {name: score_of(name, bank) for name in SCORES} | {"fitted on the other four methods": learnt}
    found |= {name: score_of(name, bank) for name in WITH_LABELS}
    by_chance, of_all = (f"{100 * random_regret(each):.1f}" for each in (linear, together(linear)))
    lines = [["a random pick", by_chance, "", "", of_all]]
    for name, score in found.items():
        lost = 100 * regrets(score, linear)
        of_all = 100 * regrets(together(score), together(linear)).mean()
        lines.append(
            [name, f"{lost.mean():.1f}", f"{np.quantile(lost, 0.95):.1f}", f"{lost.max():.1f}", f"{of_all:.1f}"]
        )
    return markdown(["chosen by", "mean", "95th percentile", "worst", "mean, all methods together"], lines)


def pruned(bank: Bank) -> str:
    """What successive halving by a score loses."""
    linear = bank.truth("linear")
    lines = []
    for name in (*SCORES, "kNN"):
        rungs, last = [score_of(name, bank, epoch) for epoch in RUNGS[:-1]], score_of(name, bank)
        cells = [halved([], last, linear), halved(rungs, last, linear), halved(rungs, linear, linear)]
        lines.append([name, *(f"{100 * cell:.1f}" for cell in cells)])
    head = ["score", "chosen at the end", "pruned and chosen", "pruned, then chosen by linear"]
    share = spent(SETTINGS, RUNGS)
    return markdown(head, lines) + f"\n\n± pruned: {share:.0%} of the epochs are trained"


def alarms(bank: Bank) -> str:
    """Whether a score tells runs that training has spoilt."""
    is_bad = bank.truth("linear") < bank.random("linear")
    planted = is_bad & bank.is_planted[None, :, None]
    lines = []
    for name, key in SPECTRA.items():
        cells = []
        for epoch in RUNGS:
            score = ranked(bank.values(key, epoch) / bank.random(key))
            cells.append(f"{area(score, is_bad):.2f}")
        score = ranked(bank.values(key) / bank.random(key))
        without = ~(is_bad & ~planted)
        lines.append([name, *cells, f"{area(score[without], is_bad[without]):.2f}"])
    head = [
        "share of the untrained network's",
        *(f"epoch {epoch}" for epoch in RUNGS),
        "planted failures alone, at the end",
    ]
    return (
        markdown(head, lines)
        + f"\n\n± {is_bad.sum()} of {is_bad.size} runs are spoilt, {planted.sum()} of them planted"
    )


SPECTRA = {
    "NESum": "nesum",
    "participation ratio": "participation_ratio",
    "RankMe": "rankme",
    "effective rank": "rank",
    "std": "std",
    "signal": "signal",
    "LiDAR": "lidar",
}


def rules(bank: Bank) -> str:
    """What rules end: spoilt runs, and runs that would have been good."""
    linear = bank.truth("linear")
    is_bad, below_best = linear < bank.random("linear"), 100 * (linear.max(1, keepdims=True) - linear)
    lines = []
    for name, rule in RULES.items():
        flagged = np.zeros(is_bad.shape, dtype=int)
        for place in np.ndindex(*is_bad.shape):
            flagged[place] = next((epoch for epoch in range(1, bank.last + 1) if rule(bank, place, epoch)), 0)
        told, false = flagged[is_bad & (flagged > 0)], (flagged > 0) & ~is_bad
        first = f"{np.median(told):.0f}" if len(told) else "-"
        least = f"{below_best[false].min():.1f}" if false.any() else "-"
        lines.append([name, f"{len(told)} of {is_bad.sum()}", first, f"{false.sum()} of {(~is_bad).sum()}", least])
    best = "the best of these, points below the best of its method"
    return markdown(["rule", "spoilt runs that it ends", "after epoch (median)", "others that it ends", best], lines)


Rule = Callable[[Bank, tuple[int, int, int], int], bool]


def embeddings(bank: Bank, place: tuple[int, int, int], epoch: int) -> bool:
    """Ask the first stage of `stop_collapsed`, which sees the loss and embeddings of a batch."""
    read = ("loss", "z_std", "z_rank")
    seen = [{key: float(row[key]) for key in read} for row in bank.runs[place][:epoch]]
    return bool(seen and collapsed(seen, find("method", bank.methods[place[0]]).values["collapsed_loss"]))


def both_stages(bank: Bank, place: tuple[int, int, int], epoch: int) -> bool:
    """Ask both; the second compares features with the untrained network's."""
    return embeddings(bank, place, epoch) or twice(below("rank", GATE))(bank, place, epoch)


def below(key: str, share: float) -> Rule:
    """Ask whether a number lies below a share of the untrained network's."""
    return lambda bank, place, epoch: bool(bank.values(key, epoch)[place] < share * bank.random(key)[place[-1]])


def twice(rule: Rule) -> Rule:
    """Ask whether a rule holds after an epoch and the one before."""
    return lambda bank, place, epoch: epoch > 1 and all(rule(bank, place, each) for each in (epoch - 1, epoch))


def fallen(key: str) -> Rule:
    """Ask whether a number lies below half of the most that it was."""

    def rule(bank: Bank, place: tuple[int, int, int], epoch: int) -> bool:
        seen = [bank.values(key, each)[place] for each in range(1, epoch + 1)]
        return bool(seen[-1] < max(seen) / 2)

    return rule


RULES: dict[str, Rule] = {
    "embeddings and loss": embeddings,
    "both stages of stop_collapsed": both_stages,
    "NESum below the untrained network's": below("nesum", 1),
    "NESum below half of it": below("nesum", 0.5),
    "NESum below half of its most": fallen("nesum"),
    "participation ratio below the untrained network's": below("participation_ratio", 1),
    "participation ratio below half of it": below("participation_ratio", 0.5),
    "effective rank below the untrained network's": below("rank", 1),
    "effective rank below half of it": below("rank", 0.5),
    "the same twice in a row": twice(below("rank", 0.5)),
    "effective rank below a quarter of it": below("rank", 0.25),
}
TABLES = {
    "correlations": correlations,
    "by_method": by_method,
    "losses": losses,
    "pruned": pruned,
    "alarms": alarms,
    "rules": rules,
}


def together(values: Scores) -> Scores:
    """Return all settings as those of one method: [methods, settings, seeds] -> [1, methods * settings, seeds]."""
    return values.reshape(1, -1, values.shape[-1])


def with_interval(score: Scores, truth: Scores, among: NDArray[np.bool_] | None = None) -> str:
    low, high = interval(score, truth, among)
    return f"{kendall(score, truth, among):+.2f} ({low:+.2f} to {high:+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = parser.add_subparsers(required=True, dest="work")
    works.add_parser("bank").add_argument("directory", type=Path)
    works.add_parser("tables")
    options = parser.parse_args()
    if options.work == "bank":
        write_bank(options.directory)
    else:
        bank = Bank.read()
        tables = {name: (lambda make=make: make(bank)) for name, make in TABLES.items()}
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
