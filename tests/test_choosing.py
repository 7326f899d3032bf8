"""The statistics of the label-free study, and its tables from planted rows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from eagleray.config.metrics import shipped

ROOT = Path(__file__).parents[1]
with pytest.MonkeyPatch.context() as patch:  # not for longer: benchmarks/methods.py would hide tests/methods
    patch.syspath_prepend(ROOT / "benchmarks")
    import choosing
    import label_free
    import label_free_sweep
METRICS = tuple(shipped())


def test_the_sweeps_file_is_what_its_script_writes():
    assert label_free_sweep.PATH.read_text(encoding="utf-8") == label_free_sweep.written()


@pytest.fixture
def truth() -> choosing.Scores:
    return np.random.default_rng(0).uniform(0.3, 0.6, (5, 15, 2))


@pytest.fixture
def score(truth: choosing.Scores) -> choosing.Scores:
    noisy = truth + np.random.default_rng(1).normal(0, 0.1, truth.shape)
    noisy[:, :3] = choosing.WORST  # ties
    return noisy


def test_tau_is_scipys_within_each_method_and_seed(score: choosing.Scores, truth: choosing.Scores):
    among = np.random.default_rng(2).random(truth.shape[:2]) > 0.3
    for used in (None, among):
        own = np.ones_like(among) if used is None else used
        pairs = [(score[m, own[m], k], truth[m, own[m], k]) for m in range(5) for k in range(2)]
        expected = np.mean([kendalltau(x, y).statistic for x, y in pairs])
        assert choosing.kendall(score, truth, used) == pytest.approx(expected)


def test_an_interval_holds_the_tau_of_more_settings():
    draw = np.random.default_rng(3)
    many = draw.normal(size=(1, 600, 1))
    noisy = many + draw.normal(size=many.shape)
    whole = choosing.kendall(noisy, many)
    held = 0
    for part in range(20):  # of twenty samples of thirty settings, about nineteen
        chosen = slice(30 * part, 30 * part + 30)
        low, high = choosing.interval(noisy[:, chosen], many[:, chosen])
        held += low <= whole <= high
    assert 16 <= held <= 20


def test_a_score_without_sense_has_a_p_value_like_any_other(score: choosing.Scores, truth: choosing.Scores):
    assert choosing.chance(score, truth) < 0.001
    draw = np.random.default_rng(4)
    found = [choosing.chance(draw.normal(size=truth.shape), truth) for _ in range(20)]
    assert 0.3 < np.mean(found) < 0.7


def test_p_values_are_adjusted_as_by_statsmodels():
    chances = [0.01, 0.04, 0.03, 0.5, 0.001]
    assert choosing.holm(chances) == pytest.approx(multipletests(chances, method="holm")[1])


def test_the_truth_has_no_regret_and_its_opposite_the_most(score: choosing.Scores, truth: choosing.Scores):
    assert choosing.regrets(truth, truth).max() == 0
    worst, some = choosing.regrets(-truth, truth).mean(), choosing.regrets(score, truth).mean()
    assert 0 < some < choosing.random_regret(truth) < worst


def test_halving_loses_what_it_ends_too_early(truth: choosing.Scores):
    assert choosing.halved([truth, truth], truth, truth) == 0
    assert choosing.halved([], truth, truth) == 0
    lost = choosing.halved([-truth], truth, truth)
    best, median = truth.max(1), np.median(truth, axis=1)
    assert lost == pytest.approx((best - median).mean()), "the worse eight of fifteen go on, the median is their best"
    assert choosing.spent(15, (1, 2, 6)) == pytest.approx((15 + 8 + 4 * 4) / 90)


def test_the_area_is_scikit_learns(score: choosing.Scores, truth: choosing.Scores):
    bad = truth < 0.4
    assert choosing.area(score, bad) == pytest.approx(roc_auc_score(bad.ravel(), -score.ravel()))


def test_a_method_has_no_part_in_the_fit_that_judges_it(score: choosing.Scores, truth: choosing.Scores):
    before = choosing.fitted_elsewhere([score, truth**2], truth)
    other = truth.copy()
    other[0] = truth[0, ::-1]
    after = choosing.fitted_elsewhere([score, truth**2], other)
    assert np.array_equal(before[0], after[0])
    assert not np.allclose(before[1], after[1])


def rows() -> Iterator[dict[str, str]]:
    """Yield a bank in which NESum is the accuracy, IdEst its opposite, and the last three settings are spoilt."""
    draw = np.random.default_rng(5)
    for seed in "01":
        yield {"method": "random", "setting": "", "seed": seed, "epoch": "0", **dict.fromkeys(METRICS, "0.4")}
    for method in label_free_sweep.OWN:
        for setting in range(15):
            for seed in "01":
                quality = draw.uniform(0.41, 0.6) if setting < 12 else draw.uniform(0.1, 0.2)
                for epoch in range(1, 7):
                    own = {name: str(draw.uniform(0.3, 0.5)) for name in METRICS}
                    own |= {"nesum": str(quality), "rank": str(quality), "idest": str(1 - quality)}
                    own |= {"z_std": "1", "z_rank": "20", "loss": "5"}
                    own["linear"] = str(quality) if epoch == 6 else ""
                    yield {"method": method, "setting": str(setting), "seed": seed, "epoch": str(epoch), **own}


@pytest.fixture(scope="module")
def tables() -> dict[str, list[list[str]]]:
    bank = label_free.Bank(list(rows()))
    small = {name: make for name, make in label_free.TABLES.items() if name != "correlations"}  # a minute of bootstrap
    return {
        name: [line.strip("| ").split(" | ") for line in make(bank).split("\n\n")[0].splitlines()[2:]]
        for name, make in small.items()
    }


def test_the_tables_follow_planted_rows(tables: dict[str, list[list[str]]]):
    found = {name: {row[0]: row[1:] for row in rows} for name, rows in tables.items()}
    assert set(found["by_method"]["NESum"]) == {"+1.00"}
    assert set(found["by_method"]["gated IdEst (low)"]) == {"+1.00"}
    assert set(found["by_method"]["IdEst (low)"]) == {"+1.00"}
    assert found["losses"]["gated NESum"][:3] == ["0.0", "0.0", "0.0"]
    assert float(found["losses"]["a random pick"][0]) > 5
    assert found["pruned"]["NESum"] == ["0.0", "0.0", "0.0"]
    assert found["alarms"]["NESum"] == ["1.00"] * 4
    assert 0.3 < float(found["alarms"]["LiDAR"][0]) < 0.7
    assert found["rules"]["NESum below the untrained network's"] == ["30 of 30", "1", "0 of 120", "-"]
    assert found["rules"]["effective rank below a quarter of it"][2] == "0 of 120"
    assert found["rules"]["embeddings and loss"] == ["0 of 30", "-", "0 of 120", "-"], "they are those of health"


def test_a_run_without_numbers_is_the_worst_of_all():
    diverged = [row for row in rows() if (row["method"], row["setting"]) != ("byol", "0") or row["epoch"] == "1"]
    bank = label_free.Bank(diverged)
    assert (bank.truth("linear")[2, 0] == 0.1).all()
    assert (label_free.score_of("NESum", bank)[2].argmin(0) == 0).all()
    assert (label_free.score_of("IdEst (low)", bank)[2].argmin(0) == 0).all()


@pytest.mark.parametrize("name", sorted({*label_free.TABLES} - {"correlations"}))  # its bootstrap takes long
def test_the_page_has_the_tables_of_its_rows(name: str):
    page = (ROOT / "docs/label-free.md").read_text(encoding="utf-8")
    assert f"<!-- table: {name} -->\n{label_free.TABLES[name](label_free.Bank.read())}\n\n" in page


def test_the_sweep_is_the_one_its_script_writes():
    written = yaml.safe_load((ROOT / "sweeps/label_free.yaml").read_text(encoding="utf-8"))
    runs = [run for method in label_free_sweep.OWN for run in label_free_sweep.variants(method)]
    assert written["vary"]["run"] == runs
    assert len(runs) == 5 * label_free.SETTINGS == 75
