"""What a sweep found: numbers against independent ones, sentences against what the numbers hold."""

import csv
import io
import random
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import f_oneway

from eagleray.report.analysis import Answer, Trial, answer, number, shown, trials_of, trials_of_rows
from eagleray.report.heatmap import crossed, draw, paired
from eagleray.report.text import csv_text, finding, leaderboard_table, markdown, on_test_part
from eagleray.report.variance import spans, variance
from eagleray.runs.record import Record

FLOORS = [
    Trial("random init convnet digits", {}, metrics={"knn": 0.836, "test_knn": 0.83}, is_floor=True),
    Trial("raw pixels digits", {}, metrics={"knn": 0.978, "test_knn": 0.97}, is_floor=True),
]


def trial(name: str, knn: float | None, state: str = "finished", **params: Any) -> Trial:
    return Trial(name, params, state, {} if knn is None else {"knn": knn, "loss": 2.0})


def found(trials: list[Trial], mode: Any = "max", binned: tuple[str, ...] = ()) -> Answer:
    varied = next(list(one.params) for one in trials if not one.is_floor)
    return answer(trials, varied, "knn", mode, binned)


def grid(noise: float = 0.005, seed: int = 0) -> list[Trial]:
    """16 points of which flip alone matters."""
    draw = random.Random(seed)
    points = [(flip, crop, batch, t) for flip in (0, 0.5) for crop in (0.2, 0.8) for batch in (64, 256) for t in (1, 2)]
    return [
        trial(f"{n:03d}", 0.95 - 0.14 * flip + draw.gauss(0, noise), flip=flip, crop=crop, batch=batch, t=t)
        for n, (flip, crop, batch, t) in enumerate(points)
    ]


# --- leaderboard -----------------------------------------------------------------------------------------------


def test_seeds_of_a_point_make_one_row():
    values = [0.8, 0.9, 0.85]
    rows = found([trial(f"000-seed{s}", value, t=0.1) for s, value in enumerate(values)]).rows
    assert [(row.name, row.runs) for row in rows] == [("000", 3)]
    assert rows[0].mean == pytest.approx(mean(values))
    assert rows[0].std == pytest.approx(stdev(values))
    assert rows[0].measured == "0.850 ± 0.050"


@pytest.mark.parametrize(("mode", "names"), [("max", ["b", "c", "a"]), ("min", ["a", "c", "b"])])
def test_the_best_end_of_the_metric_comes_first(mode: str, names: list[str]):
    trials = [trial("a", 0.1, x=1), trial("b", 0.9, x=2), trial("c", 0.5, x=3)]
    assert [row.name for row in found(trials, mode).rows] == names


def test_nothing_is_left_out_and_every_ending_is_marked():
    trials = [
        trial("000-seed0", 0.9, t=1),
        trial("000-seed1", None, "failed", t=1),
        trial("001-seed0", 0.95, "collapsed", t=2),
        trial("002-seed0", None, "failed", t=3),
        trial("003-seed0", 0.4, "stopped", t=4),
    ]
    rows = found([*trials, *FLOORS]).rows
    assert [row.name for row in rows] == ["raw pixels", "001", "000", "random init", "003", "002"]
    assert [row.state for row in rows if not row.is_floor] == [
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
    both = [Trial(f"random init {name} digits", {}, metrics={"knn": 0.5}, is_floor=True) for name in ("convnet", "vit")]
    names = [row.name for row in found([*grid(), *both, FLOORS[1]]).floors]
    assert sorted(names) == ["random init convnet digits", "random init vit digits", "raw pixels"]


# --- what made the difference ----------------------------------------------------------------------------------


def test_one_column_is_a_one_way_analysis_of_variance():
    draw = np.random.default_rng(0)
    groups = {"a": draw.normal(0, 1, 5), "b": draw.normal(0.5, 1, 4), "c": draw.normal(1, 1, 7)}
    labels = [name for name, values in groups.items() for _ in values]
    values = np.concatenate(list(groups.values()))
    ((share, chance),) = variance([labels], values.tolist())
    between = sum(len(each) * (each.mean() - values.mean()) ** 2 for each in groups.values())
    assert share == pytest.approx(between / ((values - values.mean()) ** 2).sum())
    assert chance == pytest.approx(f_oneway(*groups.values()).pvalue)


def test_two_balanced_columns_share_the_variance_as_the_text_book_says():
    table = np.array([[[3.0, 3.4], [4.1, 4.0], [5.2, 5.3]], [[2.0, 2.2], [3.4, 3.1], [4.0, 4.5]]])  # [A, B, repeat]
    a, b, _ = np.indices(table.shape)
    (share_a, _), (share_b, _) = variance([list(map(str, a.ravel())), list(map(str, b.ravel()))], list(table.ravel()))
    total = ((table - table.mean()) ** 2).sum()
    assert share_a == pytest.approx(6 * ((table.mean((1, 2)) - table.mean()) ** 2).sum() / total)
    assert share_b == pytest.approx(4 * ((table.mean((0, 2)) - table.mean()) ** 2).sum() / total)


def test_a_key_that_went_along_with_one_that_matters_gets_no_credit():
    draw = random.Random(0)
    real = ["0", "1"] * 12
    along = [label if draw.random() < 0.85 else "01"[label == "0"] for label in real]
    values = [float(label) + draw.gauss(0, 0.1) for label in real]
    ((alone, by_chance),) = variance([along], values)
    (_, first), (share, second) = variance([real, along], values)
    assert alone > 0.2
    assert by_chance is not None
    assert by_chance < 0.05
    assert share < 0.01
    assert first is not None
    assert second is not None
    assert first < 1e-6 < 0.05 < second


def test_without_repeats_nothing_tells_noise_apart():
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


def test_runs_of_one_point_are_no_witnesses_for_another_key():
    """Three seeds of each of four points are four observations of each key, not twelve."""
    points = [(x, y) for x in (0, 1) for y in (0, 1)]
    trials = [trial(f"{n}-seed{s}", 0.5 + 0.1 * x, x=x, y=y) for n, (x, y) in enumerate(points) for s in range(3)]
    levels = {effect.key: [len(level.values) for level in effect.levels] for effect in found(trials).effects}
    assert levels == {"x": [2, 2], "y": [2, 2]}


# --- the sentence ----------------------------------------------------------------------------------------------


def test_the_finding_names_what_matters_and_the_floors():
    trials = grid()
    plain, flipped = ([one.metrics["knn"] for one in trials if one.params["flip"] == flip] for flip in (0, 0.5))
    assert finding(found([*trials, *FLOORS])) == (
        f"flip matters most: knn is {mean(plain):.3f} at 0 and {mean(flipped):.3f} at 0.5 (means of 8 and 8); "
        f"raw pixels (0.978) did better than every trial (best {max(plain):.3f}), random init (0.836) did not."
    )


def test_noise_is_called_noise():
    """Of sweeps in which nothing matters, about one in twenty may claim that something does; here at most 12 %."""
    claims = 0
    for seed in range(200):
        draw = random.Random(seed)
        trials = [trial(one.name, draw.gauss(0.9, 0.01), **one.params) for one in grid()]
        claims += "no setting stands out from noise" not in finding(found(trials))
    assert 0 < claims <= 24


def test_a_real_difference_is_seen_through_noise():
    seen = sum(finding(found(grid(0.03, seed))).startswith("flip matters most") for seed in range(100))
    assert seen >= 90


def test_the_lower_end_is_the_better_one_of_a_loss():
    trials = [trial(f"{x}-seed{s}", x + s / 100, x=x) for x in (1, 2) for s in range(3)]
    floor = Trial("raw pixels digits", {}, metrics={"knn": 0.5}, is_floor=True)
    sentence = finding(found([*trials, floor], "min"))
    assert sentence.startswith("x matters: knn is 1.010 at 1 and 2.010 at 2 (means of 3 and 3)")
    assert "raw pixels (0.500) did better than every trial (best 1.010 ± 0.010)" in sentence


def test_single_runs_claim_nothing():
    sentence = finding(found([trial("a", 0.9, x=1), trial("b", 0.8, x=2)]))
    assert "one run each cannot tell a difference from noise" in sentence


def test_a_floor_within_the_scatter_of_the_seeds_is_level():
    trials = [trial(f"{x}-seed{s}", 0.83 + 0.01 * x + s / 100, x=x) for x in (0, 1) for s in range(-1, 2)]
    assert "the best trial (0.840 ± 0.010) is level with random init (0.836)." in finding(found([*trials, FLOORS[0]]))


def test_a_best_trial_above_all_floors_says_so():
    trials = [trial("a", 0.99, x=1), trial("b", 0.98, x=2)]
    sentence = finding(found([*trials, *FLOORS]))
    assert sentence.endswith("the best trial (0.990) beats raw pixels (0.978) and random init (0.836).")


def test_a_metric_that_nobody_measured_is_said():
    failed = [trial("a", None, "failed", x=1)]
    assert finding(found(failed)) == "no trial measured knn."
    other = [Trial("a", {"x": 1}, metrics={"loss": 1.0})]
    assert finding(found(other)) == "no trial measured knn; they measured loss."


def test_operations_are_judged_one_by_one():
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


def test_the_page_says_everything():
    answered = found([*grid(), trial("016", None, "failed", flip=9, crop=9, batch=9, t=9), *FLOORS])
    page = markdown(answered, name="s", question="What?", picture="heatmap.png", notes=["016 failed: no room"])
    for part in ("# s\n\nWhat?", finding(answered), "![knn", "| 1 | raw pixels |", "- 016 failed: no room", "| flip |"):
        assert part in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    heads = {line.count("|") for line in rows[:20]}
    assert len(heads) == 1


def test_the_winner_on_the_test_part_stands_beside_the_floors():
    best = Trial("000", {"x": 1}, metrics={"knn": 0.99, "test_knn": 0.95})
    assert on_test_part(found([best, *FLOORS])) == (
        "The winner (000) on the test part: test_knn 0.950 (raw pixels 0.970, random init 0.830)."
    )
    assert on_test_part(found([trial("000", 0.9, x=1)])) == ""


def test_seeds_are_counted_only_where_there_are_several():
    assert "runs" not in leaderboard_table(found(grid()))[0]
    assert "runs" in leaderboard_table(found([trial("0-seed0", 0.1, x=1), trial("0-seed1", 0.2, x=1)]))[0]


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
        [trial(f"{x}-seed{s}", x + s / 10, x=x) for x in (1, 2, 3) for s in range(2)],
        [trial(str(n), n / 9, kind=f"a rather long name of variant {n % 2}", y=n % 3) for n in range(9)],
    ],
    ids=["two keys", "pairs", "one key", "words"],
)
def test_a_picture_is_drawn(tmp_path: Path, trials: list[Trial]):
    assert draw(found(trials), tmp_path / "heatmap.png", "What?")
    with Image.open(tmp_path / "heatmap.png") as picture:
        assert min(picture.size) > 200


def test_no_picture_is_drawn_of_one_point(tmp_path: Path):
    assert not draw(found([trial("a", 0.5, x=1), *FLOORS]), tmp_path / "heatmap.png")
    assert list(tmp_path.iterdir()) == []


# --- where trials come from ------------------------------------------------------------------------------------


def test_the_trials_of_a_sweep_are_read_from_its_directory(tmp_path: Path):
    parent = Record.create(tmp_path, name="s", experiment="s", params={}, run={})

    def child(name: str, **more: Any) -> Record:
        return Record.create(
            tmp_path / "trials" / name, name=name, experiment="s", run={}, parent=parent, **{"params": {}, **more}
        )

    done = child("000", params={"batch_size": 64, "seed": 0})
    done.append(10, {"knn": 0.7, "loss": float("nan")}, 1)
    done.append(20, {"knn": 0.8}, 2)
    done.finish("finished", summary={"knn": 0.8, "test_knn": 0.75})
    child("001", params={"batch_size": 128, "seed": 0}).append(10, {"knn": 0.6}, 1)
    child("002", params={"batch_size": 256, "seed": 0}).finish("failed", "no room")
    child("raw pixels digits", tags={"kind": "floor"}).finish("finished", summary={"knn": 0.9})
    trials = {one.name: one for one in trials_of(parent, ["batch_size"])}
    assert trials["000"] == Trial("000", {"batch_size": 64}, metrics={"knn": 0.8, "test_knn": 0.75})
    assert trials["001"] == Trial("001", {"batch_size": 128}, "running", {"knn": 0.6})
    assert trials["002"] == Trial("002", {"batch_size": 256}, "failed", message="no room")
    assert trials["raw pixels digits"] == Trial("raw pixels digits", {}, metrics={"knn": 0.9}, is_floor=True)


def test_the_trials_of_an_experiment_are_read_from_mlflows_rows():
    def row(name: str, parent: str | None, knn: float | None, **params: str) -> dict[str, Any]:
        metrics = {} if knn is None else {"knn": knn}
        return {
            "name": name,
            "run_id": f"id-{name}",
            "parent": parent,
            "state": "finished",
            "params": params,
            "metrics": metrics,
        }

    rows = [
        row("sweep", None, 0.9),
        row("000", "id-sweep", 0.8, batch_size="64", lr="1e-3", seed="0", same="x"),
        row("001", "id-sweep", float("nan"), batch_size="128", lr="1e-3", seed="1", same="x"),
        row("raw pixels digits", "id-sweep", 0.9),
    ]
    trials = trials_of_rows(rows)
    assert [(one.name, one.params, one.metrics, one.is_floor) for one in trials] == [
        ("raw pixels digits", {}, {"knn": 0.9}, True),
        ("000", {"batch_size": 64}, {"knn": 0.8}, False),
        ("001", {"batch_size": 128}, {}, False),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.95, "0.950"), (0, "0.000"), (6.0312, "6.031"), (12345.6, "1.23e+04"), (1e-5, "1e-05"), (-0.5, "-0.500")],
)
def test_numbers_can_be_compared_at_a_glance(value: float, text: str):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["crop", "flip"], "crop+flip"),
        ([], "nothing"),
        (None, "default"),
        (True, "true"),
        (0.1 + 0.2, "0.3"),
        (64, "64"),
    ],
)
def test_settings_are_shown_short(value: Any, text: str):
    assert shown(value) == text
