"""Analysis and reports of a sweep: numbers against independent ones, sentences against the numbers."""

import csv
import io
import random
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import f_oneway, ttest_rel

from eagleray.report.analysis import Analysis, TrialResult, analyse, number, param_text
from eagleray.report.heatmap import crossed, paired, plot_heatmap
from eagleray.report.text import csv_text, finding, leaderboard_table, markdown, on_test_set, runs_csv
from eagleray.report.variance import paired_t_test, spans, variance


def floor(kind: str, label: str, *knn: float, of: str = "digits", **metrics: float) -> list[TrialResult]:
    """Return a floor, measured with the seeds 0, 1, …"""
    point = f"{label} {of}"
    return [
        TrialResult(f"{point} seed{n}", {}, point, label, n, kind, metrics={"knn": value, **metrics})
        for n, value in enumerate(knn)
    ]


RANDOM = floor("random", "random init", 0.836, of="convnet digits", test_knn=0.83)
PIXELS = floor("pixels", "raw pixels", 0.978, test_knn=0.97)
FLOORS = [*RANDOM, *PIXELS]


def trial(label: str, knn: float | None, state: str = "finished", seed: int = 0, **params: Any) -> TrialResult:
    metrics = {} if knn is None else {"knn": knn, "loss": 2.0}
    return TrialResult(f"{label}-seed{seed}", params, label, label, seed, state=state, metrics=metrics)


def found(trials: list[TrialResult], mode: Any = "max", binned: tuple[str, ...] = ()) -> Analysis:
    varied = next(list(one.params) for one in trials if not one.floor)
    return analyse(trials, varied, "knn", mode, binned)


def grid(noise: float = 0.005, seed: int = 0) -> list[TrialResult]:
    """Return 16 points for which only flip matters."""
    draw = random.Random(seed)
    points = [(flip, crop, batch, t) for flip in (0, 0.5) for crop in (0.2, 0.8) for batch in (64, 256) for t in (1, 2)]
    return [
        trial(f"{n:03d}", 0.95 - 0.14 * flip + draw.gauss(0, noise), flip=flip, crop=crop, batch=batch, t=t)
        for n, (flip, crop, batch, t) in enumerate(points)
    ]


# --- leaderboard -----------------------------------------------------------------------------------------------


def test_seeds_of_a_point_make_one_row():
    values = [0.8, 0.9, 0.85]
    rows = found([trial("000", value, seed=s, t=0.1) for s, value in enumerate(values)]).rows
    assert [(row.name, len(row.runs)) for row in rows] == [("000", 3)]
    assert rows[0].mean == pytest.approx(mean(values))
    assert rows[0].std == pytest.approx(stdev(values))
    assert rows[0].measured == "0.850 ± 0.050"


@pytest.mark.parametrize(("mode", "names"), [("max", ["b", "c", "a"]), ("min", ["a", "c", "b"])])
def test_the_best_end_of_the_metric_comes_first(mode: str, names: list[str]):
    trials = [trial("a", 0.1, x=1), trial("b", 0.9, x=2), trial("c", 0.5, x=3)]
    assert [row.name for row in found(trials, mode).rows] == names


def test_nothing_is_left_out_and_every_ending_is_marked():
    trials = [
        trial("000", 0.9, seed=0, t=1),
        trial("000", None, "failed", seed=1, t=1),
        trial("001", 0.95, "collapsed", seed=0, t=2),
        trial("002", None, "failed", seed=0, t=3),
        trial("003", 0.4, "stopped", seed=0, t=4),
    ]
    rows = found([*trials, *FLOORS]).rows
    assert [row.name for row in rows] == ["raw pixels", "001", "000", "random init", "003", "002"]
    assert [row.state for row in rows if not row.floor] == [
        "collapsed",
        "1 failed, 1 finished",
        "stopped",
        "failed",
    ]
    assert rows[-1].measured == "–"


def test_the_winner_has_finished():
    trials = [trial("a", 0.95, "collapsed", x=1), trial("b", 0.9, x=2), trial("c", 0.8, x=3)]
    winner = found([*trials, *FLOORS]).winner
    assert winner is not None
    assert winner.name == "b"


def test_floors_of_several_encoders_keep_their_names():
    both = [*RANDOM, *floor("random", "random init", 0.5, of="vit digits")]
    names = [row.name for row in found([*grid(), *both, *PIXELS]).floors]
    assert sorted(names) == ["random init convnet digits", "random init vit digits", "raw pixels"]


def test_seeds_of_a_floor_make_one_row():
    values = [0.96, 0.98, 0.97]
    (row,) = found([*grid(), *floor("pixels", "raw pixels", *values)]).floors
    assert (row.name, row.floor, row.seeds, row.values) == ("raw pixels", "pixels", (0, 1, 2), tuple(values))
    assert row.runs == tuple(f"raw pixels digits seed{seed}" for seed in range(3))
    assert row.measured == "0.970 ± 0.010"


def test_twins_of_a_population_stay_two_points():
    """A point is identified by its number: two that start with the same settings change during training."""
    rows = found([trial("000", 0.8, x=1), trial("001", 0.9, x=1), trial("002", 0.7, x=2)]).rows
    assert [(row.name, len(row.runs)) for row in rows] == [("001", 1), ("000", 1), ("002", 1)]


# --- what made the difference ----------------------------------------------------------------------------------


def test_one_column_is_a_one_way_analysis_of_variance():
    draw = np.random.default_rng(0)
    groups = {"a": draw.normal(0, 1, 5), "b": draw.normal(0.5, 1, 4), "c": draw.normal(1, 1, 7)}
    labels = [name for name, values in groups.items() for _ in values]
    values = np.concatenate(list(groups.values()))
    ((share, p_value),) = variance([labels], values.tolist())
    between = sum(len(each) * (each.mean() - values.mean()) ** 2 for each in groups.values())
    assert share == pytest.approx(between / ((values - values.mean()) ** 2).sum())
    assert p_value == pytest.approx(f_oneway(*groups.values()).pvalue)


def test_two_balanced_columns_share_the_variance_as_the_text_book_says():
    table = np.array([[[3.0, 3.4], [4.1, 4.0], [5.2, 5.3]], [[2.0, 2.2], [3.4, 3.1], [4.0, 4.5]]])  # [A, B, repeat]
    a, b, _ = np.indices(table.shape)
    (share_a, _), (share_b, _) = variance([list(map(str, a.ravel())), list(map(str, b.ravel()))], list(table.ravel()))
    total = ((table - table.mean()) ** 2).sum()
    assert share_a == pytest.approx(6 * ((table.mean((1, 2)) - table.mean()) ** 2).sum() / total)
    assert share_b == pytest.approx(4 * ((table.mean((0, 2)) - table.mean()) ** 2).sum() / total)


def test_a_key_that_varies_with_one_that_matters_gets_no_credit():
    draw = random.Random(0)
    real = ["0", "1"] * 12
    along = [label if draw.random() < 0.85 else "01"[label == "0"] for label in real]
    values = [float(label) + draw.gauss(0, 0.1) for label in real]
    ((alone, p_alone),) = variance([along], values)
    (_, first), (share, second) = variance([real, along], values)
    assert alone > 0.2
    assert p_alone is not None
    assert p_alone < 0.05
    assert share < 0.01
    assert first is not None
    assert second is not None
    assert first < 1e-6 < 0.05 < second


def test_p_values_are_corrected_for_the_number_of_keys():
    one_key = [trial(str(x), x / 100 + s**2 / 90, seed=s, x=x) for x in (1, 2, 3) for s in range(3)]
    (effect,) = found(one_key).effects
    groups = [[one.metrics["knn"] for one in one_key if one.params["x"] == x] for x in (1, 2, 3)]
    assert effect.p_value == pytest.approx(f_oneway(*groups).pvalue)
    assert found(one_key).test == "F test"

    points = grid(noise=0.1)
    analysis = found(points)
    labels = [[str(one.params[key]) for one in points] for key in ("flip", "crop", "batch", "t")]
    raw = dict(
        zip(("flip", "crop", "batch", "t"), variance(labels, [one.metrics["knn"] for one in points]), strict=True)
    )
    for effect in analysis.effects:
        p_value = raw[effect.key][1]
        assert p_value is not None
        assert effect.p_value == min(1.0, 4 * p_value)
    assert analysis.test == "F test, Bonferroni-corrected for 4 keys"


def test_paired_differences_are_tested_as_scipy_does():
    draw = np.random.default_rng(0)
    for count in (2, 3, 10):
        one, other = draw.normal(0.1, 1, count), draw.normal(0, 1, count)
        assert paired_t_test(list(one - other)) == pytest.approx(ttest_rel(one, other).pvalue)
    assert paired_t_test([0.5]) is None
    assert (paired_t_test([0.5, 0.5]), paired_t_test([0.0, 0.0])) == (0.0, 1.0)


def test_without_repeats_noise_is_unknown():
    assert variance([["a", "b", "c"]], [1.0, 2.0, 3.0]) == [(pytest.approx(1.0), None)]


def test_equal_values_are_explained_by_nothing():
    assert variance([["a", "b", "a", "b"], ["c", "c", "d", "d"]], [0.5] * 4) == [(0.0, 1.0), (0.0, 1.0)]


def test_values_drawn_from_a_range_are_compared_in_parts():
    values = [float(v) for v in range(9)]
    assert spans(values) == ["0 to 3"] * 3 + ["3 to 6"] * 3 + ["6 to 8"] * 3
    assert spans([1.0, 2.0, 3.0, 4.0]) == ["1 to 3", "1 to 3", "3 to 4", "3 to 4"]
    many = [trial(str(n), n / 20, t=n / 20) for n in range(12)]
    assert len(found(many).effects[0].levels) == 12
    assert len(found(many, binned=("t",)).effects[0].levels) == 3


def test_runs_of_one_point_are_not_independent_for_another_key():
    """Three seeds of each of four points are four observations of each key, not twelve."""
    points = [(x, y) for x in (0, 1) for y in (0, 1)]
    trials = [trial(str(n), 0.5 + 0.1 * x, seed=s, x=x, y=y) for n, (x, y) in enumerate(points) for s in range(3)]
    levels = {effect.key: [len(level.values) for level in effect.levels] for effect in found(trials).effects}
    assert levels == {"x": [2, 2], "y": [2, 2]}


# --- the sentence ----------------------------------------------------------------------------------------------


def test_the_finding_names_what_matters_and_the_floors():
    trials = grid()
    plain, flipped = ([one.metrics["knn"] for one in trials if one.params["flip"] == flip] for flip in (0, 0.5))
    assert finding(found([*trials, *FLOORS])) == (
        f"flip matters most: knn is {mean(plain):.3f} at 0 and {mean(flipped):.3f} at 0.5 (means of 8 and 8), "
        "p < 0.001 (F test, Bonferroni-corrected for 4 keys); "
        f"the best trial ({max(plain):.3f}) is worse than raw pixels (0.978), better than random init (0.836)."
    )


def test_noise_is_called_noise():
    """Of sweeps in which nothing matters, about one in twenty may claim that something does; here at most 12 %."""
    claims = 0
    for seed in range(200):
        draw = random.Random(seed)
        trials = [trial(one.name, draw.gauss(0.9, 0.01), **one.params) for one in grid()]
        claims += "no key has a significant effect" not in finding(found(trials))
    assert 0 < claims <= 24


def test_a_real_difference_is_seen_through_noise():
    seen = sum(finding(found(grid(0.03, seed))).startswith("flip matters most") for seed in range(100))
    assert seen >= 90


def test_the_lower_end_is_the_better_one_of_a_loss():
    trials = [trial(str(x), x + s / 100, seed=s, x=x) for x in (1, 2) for s in range(3)]
    sentence = finding(found([*trials, *floor("pixels", "raw pixels", 0.5)], "min"))
    assert sentence.startswith(
        "x matters: knn is 1.010 at 1 and 2.010 at 2 (means of 3 and 3), p < 0.001 (F test); "
        "the best trial (1.010 ± 0.010) is worse than raw pixels (0.500)"
    )


def test_single_runs_claim_nothing():
    sentence = finding(found([trial("a", 0.9, x=1), trial("b", 0.8, x=2)]))
    assert sentence == (
        "x: knn is 0.900 at 1 and 0.800 at 2, but with one run each a difference may be noise (set seeds=3)."
    )


def test_one_key_without_effect_is_said_with_its_p_value():
    trials = [trial(str(x), 0.5 + x / 100 + s / 10, seed=s, x=x) for x in (1, 2) for s in range(3)]
    groups = [[one.metrics["knn"] for one in trials if one.params["x"] == x] for x in (1, 2)]
    p_value = f_oneway(*groups).pvalue
    assert finding(found(trials)) == (
        f"x has no significant effect: knn is 0.620 at 2 and 0.610 at 1 on average, p = {p_value:.2f} (F test)."
    )


def test_the_best_trial_and_a_floor_are_compared_seed_by_seed():
    """Seeds draw the validation images: their effect on both is no difference between them."""
    hard = (0.0, 0.05, 0.1)
    best = [trial("000", 0.84 - each + 0.001 * s, seed=s, x=1) for s, each in enumerate(hard)]
    gains = [one.metrics["knn"] - (0.83 - each) for one, each in zip(best, hard, strict=True)]
    p_value = ttest_rel(gains, [0, 0, 0]).pvalue
    pixels = floor("pixels", "raw pixels", *(0.83 - each for each in hard))
    assert finding(found([*best, *pixels])).endswith(
        "the best trial (0.791 ± 0.049) is better than raw pixels "
        f"(0.780 ± 0.050; p = {p_value:.3f}, paired t test over 3 seeds)."
    )
    noisy = floor("pixels", "raw pixels", 0.83, 0.7, 0.84)
    assert "is not significantly different from raw pixels (0.790 ± 0.078; p = 0." in finding(found([*best, *noisy]))


def test_a_best_trial_of_one_seed_is_compared_with_the_floor_of_that_seed():
    best = trial("001", 0.82, seed=1, x=1)
    pixels = floor("pixels", "raw pixels", 0.9, 0.8, 0.9)
    assert finding(found([best, *pixels])).endswith("the best trial (0.820) is better than raw pixels (0.867 ± 0.058).")


def test_a_best_trial_above_all_floors_says_so():
    trials = [trial("a", 0.99, x=1), trial("b", 0.98, x=2)]
    sentence = finding(found([*trials, *FLOORS]))
    assert sentence.endswith("the best trial (0.990) is better than raw pixels (0.978) and random init (0.836).")


def test_a_metric_that_no_trial_measured_is_reported():
    failed = [trial("a", None, "failed", x=1)]
    assert finding(found(failed)) == "no trial measured knn."
    other = [TrialResult("a", {"x": 1}, "0", "a", metrics={"loss": 1.0})]
    assert finding(found(other)) == "no trial measured knn; they measured loss."


def test_operations_are_tested_one_by_one():
    names = ["crop", "flip", "jitter", "blur"]
    pairs = [[a] if a == b else [a, b] for i, a in enumerate(names) for b in names[i:]]
    draw = random.Random(0)
    trials = [
        trial(str(n), 0.5 + 0.2 * ("crop" in pair) + draw.gauss(0, 0.01), only="+".join(pair))
        for n, pair in enumerate(pairs)
    ]
    answered = found(trials)
    assert (answered.effects[0].key, answered.effects[0].of) == ("crop", "only")
    having = [one.metrics["knn"] for one in trials if "crop" in one.params["only"]]
    assert finding(answered).startswith(f"crop matters most: knn is {mean(having):.3f} with crop and 0.")
    assert "without crop (means of 4 and 6)" in finding(answered)


# --- files -----------------------------------------------------------------------------------------------------


def test_the_table_for_spreadsheets_holds_every_number():
    lines = list(csv.DictReader(io.StringIO(csv_text(found([*grid(), *FLOORS])))))
    assert len(lines) == 18
    assert [float(line["knn"]) for line in lines] == sorted((float(line["knn"]) for line in lines), reverse=True)
    one = next(line for line in lines if line["trial"] == "003")
    assert (one["flip"], one["crop"], one["state"], one["loss"]) == ("0", "0.2", "finished", "2.0")
    assert next(line for line in lines if line["trial"] == "raw pixels")["state"] == "floor"


def test_every_run_and_seed_is_a_line_of_its_own():
    trials = [*grid(), *FLOORS]
    answered = found(trials)
    lines = list(csv.DictReader(io.StringIO(runs_csv(answered, trials))))
    assert len(lines) == len(trials)
    assert [line["trial"] for line in lines] == [row.name for row in answered.rows for _ in row.runs]
    for line, name in zip(lines, (name for row in answered.rows for name in row.runs), strict=True):
        (trial,) = (trial for trial in trials if trial.name == name)
        assert line["seed"] == ("" if trial.seed is None else str(trial.seed))
        assert line["state"] == ("floor" if trial.floor else trial.state)
        assert float(line[answered.metric]) == trial.metrics[answered.metric]


def test_the_page_says_everything():
    answered = found([*grid(), trial("016", None, "failed", flip=9, crop=9, batch=9, t=9), *FLOORS])
    page = markdown(answered, name="s", question="What?", picture="heatmap.png", notes=["016 failed: no room"])
    parts = ("# s\n\nWhat?", finding(answered), "![knn", "| 1 | raw pixels |", "- 016 failed: no room", "| flip |")
    meaning = "random init is the encoder before any training"
    for part in (*parts, meaning, "| p (F test) |", "(F test, Bonferroni-corrected for 4 keys)"):
        assert part in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    heads = {line.count("|") for line in rows[:20]}
    assert len(heads) == 1


def test_the_winner_on_the_test_set_is_compared_with_the_floors():
    best = TrialResult("000", {"x": 1}, "0", "000", metrics={"knn": 0.99, "test_knn": 0.95})
    assert on_test_set(found([best, *FLOORS])) == (
        "The winner (000) on the test set: test_knn 0.950 (raw pixels 0.970, random init 0.830)."
    )
    assert on_test_set(found([trial("000", 0.9, x=1)])) == ""


def test_seeds_are_counted_only_where_there_are_several():
    assert "runs" not in leaderboard_table(found(grid()))[0]
    assert "runs" in leaderboard_table(found([trial("0", 0.1, seed=0, x=1), trial("0", 0.2, seed=1, x=1)]))[0]


def test_pairs_fill_both_sides_and_single_operations_the_diagonal():
    trials = [trial("0", 0.1, only="crop"), trial("1", 0.2, only="crop+flip"), trial("2", 0.3, only="flip")]
    assert paired(found(trials).tried, "only") == {
        ("crop", "crop"): [0.1],
        ("crop", "flip"): [0.2],
        ("flip", "crop"): [0.2],
        ("flip", "flip"): [0.3],
    }


def test_a_cell_holds_all_points_there():
    cells = crossed(found(grid(noise=0)), "flip", "crop")
    assert {place: len(values) for place, values in cells.items()} == {
        (flip, crop): 4 for flip in ("0", "0.5") for crop in ("0.2", "0.8")
    }
    assert cells["0.5", "0.2"] == pytest.approx([0.88] * 4)


@pytest.mark.parametrize(
    "trials",
    [
        [*grid(), *FLOORS],
        [trial(str(n), n / 3, only=only) for n, only in enumerate(["crop", "crop+flip", "flip"])],
        [trial(str(x), x + s / 10, seed=s, x=x) for x in (1, 2, 3) for s in range(2)],
        [trial(str(n), n / 9, kind=f"a rather long name of variant {n % 2}", y=n % 3) for n in range(9)],
    ],
    ids=["two keys", "pairs", "one key", "words"],
)
def test_a_picture_is_drawn(tmp_path: Path, trials: list[TrialResult]):
    assert plot_heatmap(found(trials), tmp_path / "heatmap.png", "What?")
    with Image.open(tmp_path / "heatmap.png") as picture:
        assert min(picture.size) > 200


def test_no_picture_is_drawn_of_one_point(tmp_path: Path):
    assert not plot_heatmap(found([trial("a", 0.5, x=1), *FLOORS]), tmp_path / "heatmap.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.95, "0.950"),
        (0, "0.000"),
        (6.0312, "6.031"),
        (12345.6, "12,346"),
        (1.2345e8, "1.23e+08"),
        (1e-5, "1e-05"),
        (-0.5, "-0.500"),
    ],
)
def test_numbers_can_be_compared_at_a_glance(value: float, text: str):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("crop+flip", "crop+flip"),
        (None, "default"),
        (True, "true"),
        (0.1 + 0.2, "0.3"),
        (64, "64"),
    ],
)
def test_params_are_written_short(value: Any, text: str):
    assert param_text(value) == text
