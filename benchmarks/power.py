"""How often a sweep's finding is right, by simulation through the code that writes it.

    python benchmarks/power.py [--sweeps 1000]

Each line simulates sweeps whose truth is known and counts the findings that say that a key matters, beside an ordinary
analysis of variance (statsmodels: seeds as blocks, Bonferroni for the keys, p < 0.05). Runs have a standard deviation
of 1 around their point and seed; seeds themselves differ by 1 unless the line says otherwise. The last table compares
the shares that a report gives with the Sobol indices of functions for which they are known.
"""

import argparse
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
import statsmodels.api as sm

from eagleray.report.analysis import Analysis, analyse
from eagleray.report.finding import finding
from eagleray.report.leaderboard import TrialResult

Values = Mapping[str, Any]
TOGETHER = "keys act together"
Draw = Callable[[np.random.Generator], list[TrialResult]]


@dataclass(frozen=True)
class Case:
    """Sweeps with one truth."""

    name: str
    draw: Draw
    seeds: int
    effect: float  # of key A, in standard deviations of a run
    drawn: tuple[str, ...] = ()  # keys whose values come from a range
    null: tuple[str, ...] = ("A", "B", "C", "D", TOGETHER)  # what is false to claim, if A has no effect


def sweep(
    points: Sequence[Values],
    seeds: int,
    mean: Callable[[Values], float],
    *,
    split: float = 1.0,
    missing: float = 0.0,
) -> Draw:
    """Return a function that draws the runs of one sweep.

    Args:
        points: their varied keys.
        seeds: runs of each point.
        mean: the metric of a point, without noise.
        split: standard deviation of what all runs of one seed share.
        missing: share of the runs that failed.
    """

    def draw(rng: np.random.Generator) -> list[TrialResult]:
        shared = rng.normal(0, split, seeds)
        return [
            trial(number, seed, point, mean(point) + shared[seed] + rng.normal())
            for number, point in enumerate(points)
            for seed in range(seeds)
            if rng.random() >= missing
        ]

    return draw


def trial(number: int, seed: int, point: Values, value: float) -> TrialResult:
    return TrialResult(f"{number}-{seed}", point, str(number), str(number), seed, metrics={"knn": value})


def grid(**keys: Sequence[Any]) -> list[Values]:
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]


def random_search(points: int, seeds: int, mean: Callable[[Values], float]) -> Draw:
    """Draw points too: A and B from a range, C from a list."""

    def draw(rng: np.random.Generator) -> list[TrialResult]:
        places = [{"A": rng.random(), "B": rng.random(), "C": "xy"[rng.integers(2)]} for _ in range(points)]
        return sweep(places, seeds, mean)(rng)

    return draw


def tpe(points: int) -> Draw:
    """Let Optuna choose points by the results of earlier ones, though nothing has an effect."""

    def draw(rng: np.random.Generator) -> list[TrialResult]:
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=int(rng.integers(2**31)))
        )
        trials = []
        for number in range(points):
            asked = study.ask()
            point = {"A": asked.suggest_float("A", 0, 1), "B": asked.suggest_float("B", 0, 1)}
            value = rng.normal()
            study.tell(asked, value)
            trials.append(trial(number, 0, point, value))
        return trials

    return draw


def of_a(effect: float) -> Callable[[Values], float]:
    return lambda point: effect * point["A"]


def power_cases() -> Iterable[Case]:
    """Key A has an effect."""
    for seeds, effect in itertools.product((3, 5, 10), (2.0, 4.0)):
        yield Case("2x2 grid", sweep(grid(A=[0, 1], B=[0, 1]), seeds, of_a(effect)), seeds, effect)
    for seeds in (3, 5, 10):
        yield Case("one key, split sd 3", sweep(grid(A=[0, 1]), seeds, of_a(2.0), split=3), seeds, 2.0)
    yield Case("2x2 grid, 1/5 of the runs missing", sweep(grid(A=[0, 1], B=[0, 1]), 5, of_a(2.0), missing=0.2), 5, 2.0)
    yield Case("random search, 30 points", random_search(30, 1, of_a(2.0)), 1, 2.0, ("A", "B"))


def null_cases() -> Iterable[Case]:
    """Key A, and all others unless the name says more, have none."""
    for seeds in (3, 5, 10):
        yield Case("2x2 grid", sweep(grid(A=[0, 1], B=[0, 1]), seeds, of_a(0)), seeds, 0)
    for seeds in (3, 5, 10):
        yield Case("one key, split sd 3", sweep(grid(A=[0, 1]), seeds, of_a(0), split=3), seeds, 0)
    two = grid(A=[0, 1], B=[0, 1])
    yield Case("2x2 grid, 1/5 of the runs missing", sweep(two, 3, of_a(0), split=3, missing=0.2), 3, 0)
    yield Case("one key of 6 values", sweep(grid(A=list(range(6))), 3, of_a(0)), 3, 0)
    yield Case("2x2x2x2 grid", sweep(grid(A=[0, 1], B=[0, 1], C=[0, 1], D=[0, 1]), 1, of_a(0)), 1, 0)

    def together(point: Values) -> float:
        return 4.0 * (point["B"] == point["C"])

    keys = grid(A=[0, 1, 2], B=[0, 1], C=[0, 1])
    yield Case("B and C act together, 1/5 missing", sweep(keys, 3, together, missing=0.2), 3, 0, null=("A",))
    yield Case("random search, 12 points", random_search(12, 3, of_a(0)), 3, 0, ("A", "B"))
    yield Case("random search, 30 points", random_search(30, 1, of_a(0)), 1, 0, ("A", "B"))

    def jumps(point: Values) -> float:
        return 6.0 * (int(point["B"] * 7) % 2)

    yield Case("random search, B in jumps of 6", random_search(20, 3, jumps), 3, 0, ("A", "B"), null=("A", "C"))
    yield Case("tpe, 30 points", tpe(30), 1, 0, ("A", "B"))


def analysed(trials: Sequence[TrialResult], drawn: Sequence[str] = ()) -> Analysis:
    return analyse(trials, list(trials[0].params), "knn", "max", drawn)


def claimed(sentence: str) -> set[str]:
    """Return what a finding claims: keys that matter, or that keys act together."""
    found = set(re.findall(r"\b(\w+) matters", sentence)) | set(re.findall(r"so does (\w+)", sentence))
    return found | ({TOGETHER} if TOGETHER in sentence else set())


def by_anova(trials: Sequence[TrialResult]) -> set[str]:
    """Return the keys that an ordinary analysis of variance finds: seeds as blocks, no interactions."""
    values, keys = [one.metrics["knn"] for one in trials], list(trials[0].params)
    columns = {key: dummies([one.params[key] for one in trials]) for key in keys}
    seeds = dummies([one.seed for one in trials])

    def fit(chosen: Iterable[str]) -> Any:
        return sm.OLS(values, np.column_stack([np.ones(len(values)), seeds, *(columns[key] for key in chosen)])).fit()

    whole = fit(keys)
    tests = {key: whole.compare_f_test(fit(each for each in keys if each != key))[1] for key in keys}
    return {key for key, p_value in tests.items() if p_value * len(keys) < 0.05}


def dummies(labels: Sequence[Any]) -> np.ndarray:
    return np.array([[label == each for each in sorted(set(labels))[1:]] for label in labels], float)


def rates(case: Case, sweeps: int, seed: int = 0) -> tuple[float, float | None]:
    """Return how often a claim is made, here and by the ordinary analysis.

    The claim is that A matters if it does, else that any key without an effect does.
    """
    rng, wanted = np.random.default_rng(seed), {"A"} if case.effect else set(case.null)
    said = [0, 0]
    for _ in range(sweeps):
        trials = case.draw(rng)
        said[0] += bool(claimed(finding(analysed(trials, case.drawn))) & wanted)
        said[1] += not case.drawn and bool(by_anova(trials) & wanted)
    return said[0] / sweeps, None if case.drawn else said[1] / sweeps


def best_of_many(sweeps: int, seeds: int, points: int = 16, seed: int = 0) -> float:
    """Return how often the best of equal points is called better than an equal floor."""
    rng, said = np.random.default_rng(seed), 0
    for _ in range(sweeps):
        runs = sweep(grid(A=list(range(points + 1))), seeds, of_a(0))(rng)
        mine = [one for one in runs if one.point != str(points)]
        floors = [replace(one, params={}, label="floor", floor="pixels") for one in runs if one not in mine]
        said += "better than floor" in finding(analysed([*mine, *floors]))
    return said / sweeps


# --- shares of keys --------------------------------------------------------------------------------------------

FUNCTIONS: Mapping[str, Sequence[Callable[[np.ndarray], np.ndarray]]] = {
    "3x + y + 0z": (lambda x: 3 * x, lambda x: x, lambda x: 0 * x),
    "2x + 6(y - 0.5)² + 0.7 exp z": (lambda x: 2 * x, lambda x: 6 * (x - 0.5) ** 2, lambda x: 0.7 * np.exp(x)),
    "sin 2πx + 1.5y": (lambda x: np.sin(2 * np.pi * x), lambda x: 1.5 * x),
}


def sobol(functions: Sequence[Callable[[np.ndarray], np.ndarray]]) -> list[float]:
    """Return the Sobol indices of a sum of functions of independent uniform numbers: shares of its variance."""
    fine = (np.arange(100_000) + 0.5) / 100_000
    variances = [float(each(fine).var()) for each in functions]
    return [each / sum(variances) for each in variances]


def share_errors(functions: Sequence[Callable], points: int, repeats: int, seed: int = 0) -> tuple[list[float], float]:
    """Return the largest error of each repeat's shares, and how often the intervals hold the truth."""
    rng, errors, held = np.random.default_rng(seed), [], []
    keys = [f"key{number}" for number in range(len(functions))]
    truth = dict(zip(keys, sobol(functions), strict=True))
    for _ in range(repeats):
        places = rng.random((points, len(keys)))
        values = np.sum([each(column) for each, column in zip(functions, places.T, strict=True)], axis=0)
        trials = [
            trial(number, 0, dict(zip(keys, place.tolist(), strict=True)), float(value))
            for number, (place, value) in enumerate(zip(places, values, strict=True))
        ]
        shares = analysed(trials, keys).effects.shares
        if not shares:
            return [], 0.0
        errors.append(max(abs(each.share - truth[each.key]) for each in shares))
        held += [each.interval[0] <= truth[each.key] <= each.interval[1] for each in shares]
    return errors, float(np.mean(held))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated for each line")
    sweeps = parser.parse_args().sweeps
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("| sweeps | seeds | effect, sd of a run | Eagleray | blocked ANOVA |\n| --- | --- | --- | --- | --- |")
    for case in (*power_cases(), *null_cases()):
        ours, theirs = rates(case, sweeps)
        error = (ours * (1 - ours) / sweeps) ** 0.5
        other = "" if theirs is None else f"{theirs:.1%}"
        print(f"| {case.name} | {case.seeds} | {case.effect:g} | {ours:.1%} ± {error:.1%} | {other} |", flush=True)
    for seeds in (2, 3, 5):
        ours = best_of_many(sweeps, seeds)
        error = (ours * (1 - ours) / sweeps) ** 0.5
        print(
            f"| best of 16 equal points beats an equal floor | {seeds} | 0 | {ours:.1%} ± {error:.1%} | |", flush=True
        )
    print(f"\n{sweeps} sweeps a line; ±: standard error. Effect 0: any claim is false.\n")
    print("| function | points | mean error of the shares | 90 % below | 95 % intervals that hold |")
    print("| --- | --- | --- | --- | --- |")
    for (name, functions), points in itertools.product(FUNCTIONS.items(), (24, 37, 60, 100)):
        errors, held = share_errors(functions, points, max(20, sweeps // 10))
        numbers = (
            [f"{np.mean(errors):.3f}", f"{np.quantile(errors, 0.9):.3f}", f"{held:.0%}"]
            if errors
            else ["too few", "", ""]
        )
        print(f"| {name} | {points} | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main()
