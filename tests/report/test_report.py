"""Analysis and reports of a sweep: numbers against independent ones, sentences against the numbers."""

import csv
import io
import random
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from PIL import Image
from scipy.stats import f_oneway, t, ttest_rel

from eagleray.report.analysis import Analysis, analyse
from eagleray.report.drawing import parallel_coordinates
from eagleray.report.effects import spans
from eagleray.report.finding import finding
from eagleray.report.heatmap import crossed, paired, plot_heatmap
from eagleray.report.leaderboard import TrialResult
from eagleray.report.numbers import number, param_text
from eagleray.report.text import csv_text, leaderboard_table, markdown, on_test_set, runs_csv, what_intervals_are


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
    low, high = t.interval(0.95, 2, mean(values), stdev(values) / 3**0.5)
    assert rows[0].margin == pytest.approx((high - low) / 2)
    assert rows[0].measured == f"0.850 ± {(high - low) / 2:.3f}"


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


def test_runs_that_ended_early_are_counted_in_words():
    """A scheduler stops the worse ones, whose last numbers are those of fewer epochs."""
    trials = [trial("a", 0.9, x=1), trial("b", 0.4, "stopped", x=2), trial("c", None, "failed", x=3)]
    assert "; 1 run did not finish and counts with the last that was measured; " in what_intervals_are(found(trials))
    trials.append(trial("b", 0.3, "collapsed", seed=1, x=2))
    assert "; 2 runs did not finish and count with the last that was measured; " in what_intervals_are(found(trials))
    assert "finish" not in what_intervals_are(found(grid()))


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
    assert row.measured == f"0.970 ± {t.ppf(0.975, 2) * 0.01 / 3**0.5:.3f}"


def test_twins_of_a_population_stay_two_points():
    """A point is identified by its number: two that start with the same settings change during training."""
    rows = found([trial("000", 0.8, x=1), trial("001", 0.9, x=1), trial("002", 0.7, x=2)]).rows
    assert [(row.name, len(row.runs)) for row in rows] == [("001", 1), ("000", 1), ("002", 1)]
    twins = found([trial("000", 0.8, x=1), trial("001", 0.9, x=1)])
    assert finding(twins) == "all 2 points have the same settings; the best has knn 0.900."


# --- what made the difference ----------------------------------------------------------------------------------


def test_values_drawn_from_a_range_are_compared_in_parts():
    values = [float(v) for v in range(9)]
    assert spans(values) == ["0 to 3"] * 3 + ["3 to 6"] * 3 + ["6 to 8"] * 3
    assert spans([1.0, 2.0, 3.0, 4.0]) == ["1 to 3", "1 to 3", "3 to 4", "3 to 4"]
    assert spans([1, 1, 1, 1, 1, 2]) == ["1 to 2"] * 5 + ["2 to 2"], "most values may be the lowest"
    assert spans([0.1001, 0.1002, 0.1003]) == ["0.1001 to 0.1003"] * 2 + ["0.1003 to 0.1003"]
    many = [trial(str(n), n / 20, t=n / 20) for n in range(12)]
    assert len(found(many).effects.each[0].levels) == 12
    assert len(found(many, binned=("t",)).effects.each[0].levels) == 3


# --- the sentence ----------------------------------------------------------------------------------------------


def test_the_finding_names_what_matters_and_the_floors():
    trials = grid()
    plain, flipped = ([one.metrics["knn"] for one in trials if one.params["flip"] == flip] for flip in (0, 0.5))
    half = found(trials).effects.each[0].levels[0].margin
    assert finding(found([*trials, *FLOORS])) == (
        f"flip matters: knn is {mean(plain):.3f} ± {half:.3f} at 0 and {mean(flipped):.3f} ± {half:.3f} at 0.5 "
        "(from 8 and 8 runs), p < 0.001 (F test, Bonferroni-corrected for 4 keys); "
        f"the best trial ({max(plain):.3f}) is {0.978 - max(plain):.3f} below raw pixels (0.978) "
        f"and {max(plain) - 0.836:.3f} above random init (0.836); "
        "without a second seed there is no interval, so this may be noise."
    )


def test_every_other_key_that_matters_is_named_with_its_p_value():
    points = grid()
    trials = [trial(one.name, one.metrics["knn"] + 0.03 * (one.params["t"] == 2), **one.params) for one in points]
    assert re.search(
        r"^flip matters: .*, and so does t \(best at 2, p (<|=) 0\.\d+\); |^flip .*\)\.$", finding(found(trials))
    )
    assert ", and so does t (best at 2, p" in finding(found(trials))


def test_a_real_difference_is_seen_through_noise():
    seen = sum(finding(found(grid(0.03, seed))).startswith("flip matters: ") for seed in range(100))
    assert seen >= 90


def test_the_lower_end_is_the_better_one_of_an_error():
    trials = [trial(str(x), x + s / 100 + (x == s) / 100, seed=s, x=x) for x in (1, 2) for s in range(3)]
    sentence = finding(found([*trials, *floor("pixels", "raw pixels", 0.5, 0.52, 0.53)], "min"))
    assert re.match(
        r"x matters: knn is 1\.\d+ ± \d\.\d+ at 1 and 2\.\d+ ± \d\.\d+ at 2 \(from 3 and 3 runs\), p", sentence
    )
    assert "(F test, seeds as blocks); the best trial (1.013 ± 0." in sentence
    assert "is worse than raw pixels (0.517 ± 0." in sentence


def test_single_runs_claim_nothing():
    sentence = finding(found([trial("a", 0.9, x=1), trial("b", 0.8, x=2)]))
    assert sentence == (
        "x: knn is 0.900 at 1 and 0.800 at 2, but with one run each a difference may be noise (set seeds=3)."
    )


def test_equal_values_are_no_choice():
    tie = [trial(str(x), 0.864, seed=s, x=x) for x in (1, 2) for s in range(2)]
    assert finding(found(tie)) == "x makes no difference: knn is 0.864 at every value."


def test_equal_values_of_one_seed_prove_nothing():
    tie = [trial(str(x), 0.864, x=x) for x in (1, 2)]
    assert (
        finding(found(tie)) == "knn is 0.864 at every value of x, but with one seed that may be chance (set seeds=3)."
    )
    cells = [trial(f"{x}{y}", 0.864, x=x, y=y) for x in (1, 2) for y in (1, 2)]
    assert finding(found(cells)) == "knn is 0.864 at every value, but with one seed that may be chance (set seeds=3)."


def test_listed_values_that_look_alike_are_levels_of_their_own(tmp_path: Path):
    values = (0.10001, 0.10002, 0.2)
    trials = [trial(str(x), 0.5 + n / 10 + s / 100, seed=s, x=x) for n, x in enumerate(values) for s in range(2)]
    analysis = found(trials)
    (effect,) = analysis.effects.each
    assert [(level.label, level.runs) for level in effect.levels] == [("0.10001", 2), ("0.10002", 2), ("0.2", 2)]
    assert [line[2] for line in leaderboard_table(analysis)[1]] == ["0.2", "0.10002", "0.10001"]
    assert {line["x"] for line in csv.DictReader(io.StringIO(csv_text(analysis)))} == {"0.10001", "0.10002", "0.2"}
    assert plot_heatmap(analysis, tmp_path / "map.png", "Which?")
    lines = re.findall(r'<polyline[^>]* points="\d+\.\d,(\d+\.\d) ', parallel_coordinates(analysis))
    assert len(set(lines)) == 3, "each has its own place on the axis"
    drawn = found(trials, binned=("x",))
    assert [line[2] for line in leaderboard_table(drawn)[1]] == ["0.2", "0.1", "0.1"], "drawn values stay short"


def test_one_key_is_paired_by_seed():
    """What all runs of a seed share, as their validation images, hides no difference."""
    trials = [trial(str(x), 0.5 + x / 100 + s / 10 + (x == s) / 500, seed=s, x=x) for x in (1, 2) for s in range(3)]
    one, two = ([run.metrics["knn"] for run in trials if run.params["x"] == x] for x in (1, 2))
    p_value, unpaired = ttest_rel(one, two).pvalue, f_oneway(one, two).pvalue
    assert p_value < 0.05 < unpaired
    (effect,) = found(trials).effects.each
    assert effect.p_value == pytest.approx(p_value)
    assert f"p = {p_value:.3f} (F test, seeds as blocks)" in finding(found(trials))


def test_no_effect_is_said_with_its_p_value():
    trials = [trial(str(x), 0.5 + s / 10 + (x == 1 == s) / 50, seed=s, x=x) for x in (1, 2) for s in range(3)]
    sentence = finding(found(trials))
    assert sentence.startswith(
        "x has no significant effect: knn is 0.607 ± 0.020 at 1 and 0.600 ± 0.020 at 2, p = 0.42 (F"
    )


def test_keys_that_act_together_are_said_to():
    """The effect of one is the opposite of itself at the other's other value; on average there is none."""
    points = [(x, y) for x in (0, 1) for y in (0, 1)]
    draw = random.Random(0)
    trials = [
        trial(str(n), 0.5 + 0.1 * (x == y) + draw.gauss(0, 0.005), seed=s, x=x, y=y)
        for n, (x, y) in enumerate(points)
        for s in range(3)
    ]
    sentence = finding(found(trials))
    assert sentence.startswith("no key has a significant effect")
    assert "the keys act together (p < 0.001, F test of lack of fit)" in sentence
    assert "The keys act together (p < 0.001" in markdown(found(trials), name="s", question="", picture=None, notes=[])


def test_the_best_trial_and_a_floor_are_compared_seed_by_seed():
    """Seeds draw the validation images: their effect on both is no difference between them."""
    hard = (0.0, 0.05, 0.1)
    best = [trial("000", 0.84 - each + 0.001 * s, seed=s, x=1) for s, each in enumerate(hard)]
    gains = [one.metrics["knn"] - (0.83 - each) for one, each in zip(best, hard, strict=True)]
    p_value, half = ttest_rel(gains, [0, 0, 0]).pvalue, t.ppf(0.975, 2) * stdev(gains) / 3**0.5
    pixels = floor("pixels", "raw pixels", *(0.83 - each for each in hard))
    assert finding(found([*best, *pixels])).endswith(
        "the best trial (0.791 ± 0.122) is better than raw pixels "
        f"(0.780 ± 0.124; by 0.011 ± {half:.3f}, p = {p_value:.3f}), t test paired by seed."
    )
    noisy = floor("pixels", "raw pixels", 0.83, 0.7, 0.84)
    assert "is not significantly different from raw pixels (0.790 ± 0.194; by 0.001" in finding(found([*best, *noisy]))


def test_the_best_of_many_is_compared_with_a_floor_as_such():
    trials = [trial(str(x), 0.9 + x / 1e4 + s / 100 + (x == s) / 1e3, seed=s, x=x) for x in range(4) for s in range(3)]
    answered = found([*trials, *floor("pixels", "raw pixels", 0.89, 0.901, 0.91)])
    assert answered.comparisons == 4
    assert "t test paired by seed, Bonferroni-corrected for 4 comparisons." in finding(answered)
    assert "the best of 4 points looks better than it is" in what_intervals_are(answered)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.864, "equal to random init (0.864)"), (0.866, "0.002 above random init (0.864)"), (0.86, "0.004 below random")],
)
def test_a_tie_is_a_tie_and_one_seed_is_no_defeat(value: float, words: str):
    trials = [trial("a", value, x=1), trial("b", 0.8, x=2)]
    sentence = finding(found([*trials, *floor("random", "random init", 0.864)]))
    assert words in sentence
    assert "better than" not in sentence
    assert "worse than" not in sentence


def test_a_tie_over_several_seeds_is_a_tie():
    trials = [trial("a", 0.8 + s / 10, seed=s, x=1) for s in range(3)]
    sentence = finding(found([*trials, *floor("random", "random init", 0.8, 0.9, 1.0)]))
    assert "is not significantly different from random init (0.900 ± 0.248; by 0.000 ± 0.000, p = 1.00)" in sentence


def test_a_best_trial_of_one_seed_is_compared_with_the_floor_of_that_seed():
    best = trial("001", 0.82, seed=1, x=1)
    pixels = floor("pixels", "raw pixels", 0.9, 0.8, 0.9)
    assert "the best trial (0.820) is 0.020 above raw pixels (0.867 ± 0.143); without" in finding(
        found([best, *pixels])
    )


def test_one_lucky_seed_makes_no_winner():
    lucky = [trial("a", 0.99, seed=0, x=1), trial("a", None, "failed", seed=1, x=1)]
    steady = [trial("b", 0.9, seed=s, x=2) for s in range(2)]
    answered = found([*lucky, *steady])
    assert answered.winner is not None
    assert answered.winner.name == "b"
    cells = [line[3:5] for line in leaderboard_table(answered)[1]]
    assert cells == [["0.990 (no interval)", "1 of 2"], ["0.900 ± 0.000", "2"]]


def test_a_metric_with_a_caution_says_it():
    trials = [TrialResult(str(x), {"x": x}, str(x), str(x), metrics={"rankme": float(x)}) for x in (1, 2)]
    assert finding(analyse(trials, ["x"], "rankme", "max")).endswith(
        " Mind that rankme is no accuracy: it tells collapsed runs from healthy ones; "
        "among healthy ones it hardly follows accuracy."
    )


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
    assert (answered.effects.each[0].key, answered.effects.each[0].of) == ("crop", "only")
    assert re.match(
        r"crop matters: knn is 0\.[67]\d\d ± 0\.0\d\d with crop and 0\.[45]\d\d ± .* without crop", finding(answered)
    )
    assert "without crop (from 4 and 6 runs)" in finding(answered)


@pytest.mark.parametrize(
    "values",
    [("simclr only=crop+jitter", "byol"), ("0.5+0.8", "0.9"), ("/a+b", "/c"), (None, "crop+jitter")],
    ids=["variants", "numbers", "paths", "the method's own"],
)
def test_what_is_no_list_of_operations_is_tested_as_it_is(values: tuple[Any, ...]):
    trials = [trial(str(n), n + s / 9, seed=s, key=value) for n, value in enumerate(values) for s in range(2)]
    (effect,) = found(trials).effects.each
    assert (effect.key, {level.label for level in effect.levels}) == ("key", set(map(param_text, values)))


def test_no_operation_at_all_is_no_operation():
    trials = [trial(str(n), n / 9, only=only) for n, only in enumerate(["nothing", "crop", "jitter", "crop+jitter"])]
    assert [effect.key for effect in found(trials).effects.each] == ["jitter", "crop"]
    assert len(paired(found(trials).tried, "only")) == 4


# --- files -----------------------------------------------------------------------------------------------------


def test_the_table_for_spreadsheets_holds_every_number():
    lines = list(csv.DictReader(io.StringIO(csv_text(found([*grid(), *FLOORS])))))
    assert len(lines) == 18
    assert [float(line["knn"]) for line in lines] == sorted((float(line["knn"]) for line in lines), reverse=True)
    one = next(line for line in lines if line["trial"] == "003")
    assert (one["flip"], one["crop"], one["state"], one["loss"]) == ("0", "0.2", "finished", "2.0")
    assert next(line for line in lines if line["trial"] == "raw pixels")["state"] == "floor"
    assert (one["knn_low"], one["loss_high"]) == ("", "")  # one seed


def test_the_table_for_spreadsheets_has_the_interval_of_every_mean():
    values = [0.8, 0.9, 0.85]
    (line,) = csv.DictReader(io.StringIO(csv_text(found([trial("0", v, seed=s, x=1) for s, v in enumerate(values)]))))
    low, high = t.interval(0.95, 2, mean(values), stdev(values) / 3**0.5)
    assert (float(line["knn_low"]), float(line["knn_high"])) == pytest.approx((low, high))
    assert (float(line["loss"]), float(line["loss_low"])) == (2.0, 2.0)


def test_every_run_and_seed_is_a_line_of_its_own():
    trials = [*grid(), *FLOORS, *floor("random-2", "random init", 0.8, of="vit digits")]
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
    parts = (
        "# s\n\nWhat?",
        finding(answered),
        "heatmap.png beside this file shows knn by what was varied",
        "| 1 | raw pixels |",
        "- 016 failed: no room",
        "| flip |",
    )
    meaning = "random init is the encoder before any training"
    for part in (*parts, meaning, "| p (F test) |", "F test, Bonferroni-corrected for 4 keys.", "noncentral F"):
        assert part in page
    assert "One seed each: no interval; the best of 16 points looks better than it is" in page
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


@pytest.mark.parametrize("text", [r"Is $\foo better than $5?", "어떤 온도가 맞나?"], ids=["dollars", "another script"])
def test_a_picture_is_drawn_whatever_is_asked(tmp_path: Path, text: str):
    trials = [trial(str(x), x / 3, x=f"{x} {text}", y=x) for x in range(3)]
    assert plot_heatmap(found(trials), tmp_path / "heatmap.png", text)


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
        (999.7, "1,000"),
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
