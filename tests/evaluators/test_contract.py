"""An evaluator is one file: what it declares appears everywhere, and no list of metrics is kept beside it."""

import ast
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.app.conclude import conclude
from eagleray.app.terminal import leaderboard, metrics_table
from eagleray.config import Run, Sweep, load_run, read_run, registry, sections, validated
from eagleray.config.metrics import (
    check_protocols,
    has,
    headlines,
    known,
    measured_by,
    measuring,
    mode_of,
    ordered,
    shipped,
)
from eagleray.config.registry import declared
from eagleray.config.schema import run_schema
from eagleray.config.search_points import points
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.interval import wilson
from eagleray.contracts.metric import Metric
from eagleray.loop import train
from eagleray.report.catalogue import metrics_page
from eagleray.runs.assemble import assemble
from eagleray.runs.evaluation import Evaluation
from eagleray.runs.floors import measure
from eagleray.runs.preflight import check_run
from eagleray.runs.record import Record
from eagleray.runs.rehearsal import rehearse
from eagleray.runs.writer import recorded
from eagleray.tracking import sync
from eagleray.tracking.store import connect
from method_cases import METHODS, needed, small

ROOT = Path(__file__).parents[2]
TINY = ["data.limit=120", "batch_size=40", "epochs=1", "encoder.width=8", "threads=1", "device=cpu", "precision=fp32"]
TOY = '''"""Participation: how many directions the features use.

A second paragraph.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field

from eagleray.contracts.evaluator import Encodings, Evaluator
from eagleray.contracts.metric import Metric


class Participation(Evaluator):
    """The participation ratio of the features' spectrum."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """How it is computed."""

        power: Annotated[float, Field(gt=0, description="of the eigenvalues")] = 1.0

    metrics: ClassVar[dict[str, Metric]] = {
        "participation": Metric("how many directions carry the variance", "lower", headline=True)
    }
    config: Config

    def __call__(self, encodings: Encodings) -> dict[str, float]:
        values = torch.linalg.eigvalsh(encodings.evaluated.features.T.cov()).clamp_min(0) ** self.config.power
        return {"participation": (values.sum() ** 2 / values.square().sum()).item()}
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of the folder of evaluators with one file more."""
    package = tmp_path / f"evaluators_{tmp_path.name.replace('-', '_')}"
    shutil.copytree(ROOT / "platform/eagleray/evaluators", package)
    (package / "participation.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    caches = [declared, shipped, *(each for each in vars(sections).values() if hasattr(each, "cache_clear"))]
    with monkeypatch.context() as patched:
        patched.setitem(registry._PACKAGES, "evaluator", package.name)
        for cached in caches:
            cached.cache_clear()
        yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The toy as a module of the user's own."""
    package = tmp_path / f"lab_{tmp_path.name.replace('-', '_')}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "participation.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{package.name}.participation"


def trained(run: Run, record: Record) -> dict[str, float]:
    for _ in recorded(train(run, record.directory), record):
        pass
    return record.summary


def a_sweep(**changes: Any) -> Sweep:
    run = load_run(None, TINY).file()
    del run["method"], run["encoder"], run["optimizer"]
    tree = {"name": "s", "run": run, "vary": {"optimizer.lr": [0.001, 0.002]}, "search": "grid", **changes}
    return validated(Sweep, tree)


@pytest.mark.slow
def test_one_file_is_all_that_an_evaluator_takes(toy: None, tmp_path: Path):
    """In the run, the terminal, a sweep by it, its leaderboard, the pages, and MLflow."""
    sweep = a_sweep(metric="participation", floor=[])
    assert sweep.mode == "min"
    rehearse(sweep, [point.run(sweep) for point in points(sweep)])
    meanings = {name: metric.meaning for name, metric in sweep.metrics.items()}
    parent = Record.create(
        tmp_path / "sweep", name="s", experiment="s", params={}, run=sweep.model_dump(mode="json"), meanings=meanings
    )
    for point in points(sweep):
        run, place = point.run(sweep), parent.directory / "trials" / point.label
        record = Record.create(
            place,
            name=point.label,
            experiment="s",
            params=point.params(sweep),
            run=run.file(),
            parent=parent,
            tags=point.tags,
            meanings=meanings,
        )
        assert trained(run, record)["participation"] > 1
        shown = metrics_table(record.summary, run)
        assert "participation" in list(shown.columns[0].cells)
        assert "how many directions carry the variance" in list(shown.columns[2].cells)
    found = conclude(sweep, parent)
    values = [row.mean for row in found.rows]
    assert values == sorted(values, key=lambda value: value or 0)  # the fewest directions first
    assert "participation" in [column.header for column in leaderboard(found).columns]
    assert "participation is " in (parent.artifacts / "report.md").read_text()
    assert "participation" in (parent.artifacts / "leaderboard.csv").read_text().partition("\n")[0].split(",")
    by_knn = conclude(a_sweep(floor=[]), parent)
    assert "participation" in [column.header for column in leaderboard(by_knn).columns]  # a headline, beside kNN
    assert "| `participation` | how many directions carry the variance | lower |  | yes |" in metrics_page()
    assert "- `evaluate.participation.power` (1.0): of the eigenvalues" in metrics_page()
    assert "participation" in run_schema()["$defs"]["Evaluate"]["properties"]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sync(parent, uri)
    client = connect(uri)
    (kept,) = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    description = kept.data.tags["mlflow.note.content"]  # what MLflow's page of a run shows as its description
    assert "- **participation**: how many directions carry the variance" in description.splitlines()


def test_an_evaluator_of_ones_own_is_named_in_also(own: str, tmp_path: Path):
    run = load_run(None, [*TINY, f"evaluate.also=[{own}]", "evaluate.participation.power=2", "evaluate.knn.k=3"])
    assert read_run(run.file()) == run
    record = Record.create(tmp_path / "run", name="r", experiment="e", params={}, run=run.file())
    squared = trained(run, record)["participation"]
    plain = load_run(None, [*TINY, f"evaluate.also=[{own}]"])
    other = Record.create(tmp_path / "other", name="r", experiment="e", params={}, run=plain.file())
    assert 1 < squared < trained(plain, other)["participation"]
    asked = a_sweep(metric="participation", run={"evaluate": {"also": [own]}, "epochs": 1})
    assert (asked.mode, headlines(asked.metrics)[0]) == ("min", "participation")
    with pytest.raises(
        ConfigError, match=r"evaluate\.participation\.powr; did you mean evaluate\.participation\.power"
    ):
        load_run(None, [f"evaluate.also=[{own}]", "evaluate.participation.powr=2"])
    with pytest.raises(ConfigError, match="reports no such number; did you mean participation"):
        a_sweep(metric="participaton", run={"evaluate": {"also": [own]}})


def test_a_file_that_was_changed_is_read_again(tmp_path: Path):
    file = tmp_path / "participation.py"
    file.write_text(TOY)
    assert load_run(None, [f"evaluate.also=[{file}]", "evaluate.participation.power=2"])
    file.write_text(TOY.replace("power", "exponent"))
    os.utime(file, ns=(1, 1))  # whatever the clock of the file system can tell apart
    assert load_run(None, [f"evaluate.also=[{file}]", "evaluate.participation.exponent=2"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("[nowhere.x]", "there is no evaluator 'nowhere.x': no such module can be imported from here"),
        ("[knn]", "evaluate.also: knn is neither a FILE.py nor a module"),
        ("[eagleray.evaluators.knn]", "an evaluator or a setting called knn already"),
    ],
)
def test_a_module_that_is_no_evaluator_of_ones_own_is_refused(changes: str, said: str):
    with pytest.raises(ConfigError, match=said):
        load_run(None, [f"evaluate.also={changes}"])


def test_an_evaluator_returns_what_it_declares(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = next(tmp_path.rglob("participation.py"))
    file.write_text(TOY.replace('return {"participation"', 'return {"ratio"'))
    built = assemble(load_run(None, [*TINY, f"evaluate.also=[{own}]"]))
    with pytest.raises(ConfigError, match="participation returns ratio, which it does not declare in `metrics`"):
        built.evaluation(built.method, built.autocast, final=True)


def test_what_a_run_file_would_not_give_back_is_refused(own: str, tmp_path: Path):
    halved = TOY.replace("Field(gt=0,", "AfterValidator(lambda power: power / 2), Field(gt=0,")
    file = next(tmp_path.rglob("participation.py"))
    file.write_text(halved.replace("import BaseModel, Field", "import AfterValidator, BaseModel, Field"))
    with pytest.raises(ConfigError, match=r"evaluate\.participation: a validator of its Config changes values"):
        load_run(None, [f"evaluate.also=[{own}]", "evaluate.participation.power=2"])


def test_two_metrics_of_one_name_are_refused(own: str, tmp_path: Path):
    next(tmp_path.rglob("participation.py")).write_text(TOY.replace('"participation":', '"knn":'))
    with pytest.raises(ConfigError, match="two metrics are called knn"):
        a_sweep(run={"evaluate": {"also": [own]}})


# --- what is measured, and when --------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["always", "end", "never"])
@pytest.mark.parametrize("name", ["knn", "linear", "collapse", "pairs"])
def test_every_evaluator_is_measured_when_the_run_says(name: str, when: str):
    built = assemble(load_run(None, [*TINY, f"evaluate.{name}.when={when}"]))
    mine = set(built.evaluation.evaluators[name].metrics)
    during, at_end = (set(built.evaluation(built.method, built.autocast, final=final)) for final in (False, True))
    assert (mine <= during, mine <= at_end) == {"always": (True, True), "end": (False, True), "never": (False, False)}[
        when
    ]
    assert bool(mine & during) is (when == "always")


def test_nothing_is_encoded_that_nobody_asks_for(monkeypatch: pytest.MonkeyPatch):
    off = ("knn", "linear", "pairs", "label_free")
    built = assemble(load_run(None, [*TINY, *(f"evaluate.{name}.when=never" for name in off)]))
    encoded = []
    encode = Evaluation.encode

    def counted(self: Evaluation, network: Any, images: Any, autocast: Any) -> torch.Tensor:
        encoded.append(images)
        return encode(self, network, images, autocast)

    monkeypatch.setattr(Evaluation, "encode", counted)
    built.evaluation(built.method, built.autocast, final=True)
    shown = built.evaluation.data.validation
    assert shown is not None
    assert [*map(len, encoded)] == [len(shown)] * 2, "its own features and those before training"
    built.evaluation(built.method, built.autocast, final=True)
    assert encoded[2:] == [shown], "train and test cost nothing, and the untrained network is asked once"


def test_pairs_are_the_same_for_every_method():
    """Two methods with equal encoder weights, whatever views they declare and `augment` says."""
    runs = [
        load_run(None, [*TINY, "method=simclr"]),
        load_run(None, [*TINY, "method=rotnet"]),
        load_run(None, [*TINY, "method=byol", "augment.flip=0", "augment.jitter=1", "augment.exact=true"]),
    ]
    several = [assemble(run) for run in runs]
    for built in several[1:]:
        built.method.encoder.load_state_dict(several[0].method.encoder.state_dict())
    measured = [built.evaluation(built.method, built.autocast, final=False) for built in several]
    pairs = [
        {name: numbers[name] for name in ("alignment", "positive", "negative", "gap", "separability")}
        for numbers in measured
    ]
    assert pairs[0] == pairs[1] == pairs[2]
    assert 0 < pairs[0]["alignment"] < 2 * (1 - pairs[0]["negative"])


def test_floors_have_pairs_too():
    run = load_run(None, TINY)
    for kind in ("random", "pixels"):
        assert {"knn", "linear", "std", "alignment", "test_knn"} <= set(measure(kind, run))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_views_unless_it_sees_labelled_images_alone(name: str):
    """`has` reads it off the declaration, where the method's own word is its `views`."""
    run = load_run(None, [f"method={name}", *needed(name)])
    if needed(name):
        pytest.skip("has to be built from a trained run")
    assert ("two_views" in has(run, labels=True)) == bool(small(name).views)


# --- one table -------------------------------------------------------------------------------------------------


def test_numbers_are_shown_headlines_first():
    names = ["loss", "test_linear", "z_std", "zebra", "accuracy", "test_knn", "knn", "rank"]
    assert ordered(names, shipped()) == ["knn", "accuracy", "test_knn", "test_linear", "loss", "z_std", "rank", "zebra"]
    assert headlines(shipped()) == ["knn", "linear", "accuracy"]


def test_the_better_end_is_the_metrics_own():
    ends = {"knn": "max", "test_knn": "max", "loss": "min", "alignment": "min", "images_per_second": "max"}
    assert {name: mode_of(name, shipped()) for name in ends} == ends
    assert Metric("anything").mode is None
    own = {"method": "rotnet"}
    assert a_sweep(run=own, metric="rotation", mode="max").mode == "max"
    assert a_sweep(metric="knn", mode="min").mode == "min"
    with pytest.raises(
        ConfigError,
        match="metric=rotation does not declare whether higher or lower is better",
    ):
        a_sweep(run=own, metric="rotation")


FINETUNE = {"method": "finetune", "encoder": {"name": "pretrained", "run": "somewhere"}}


@pytest.mark.parametrize(
    ("run", "metric", "said"),
    [
        (FINETUNE, "alignment", "finetune declares no views"),
        ({"method": "simclr"}, "accuracy", "simclr has no classifier"),
        ({"evaluate": {"pairs": {"when": "never"}}}, "alignment", "not measured with run.evaluate.pairs.when=never"),
        ({"method": "vicreg"}, "redundancy", "vicreg reports no such number"),
    ],
)
def test_a_metric_that_a_run_does_not_report_is_refused_on_reading_the_file(run: dict, metric: str, said: str):
    with pytest.raises(ConfigError, match=said):
        a_sweep(run=run, metric=metric)


@pytest.mark.parametrize("metric", ["knn", "linear", "rank", "rankme", "images_per_second"])
def test_a_sweep_may_choose_by_a_goal(metric: str):
    assert a_sweep(metric=metric).mode == "max"


@pytest.mark.parametrize("mode", [{}, {"mode": "min"}], ids=["", "mode=min"])
@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("loss", "losses of different settings have different scales"),
        ("z_std", "it shows collapse"),
        ("z_rank", "whose width is a setting"),
        ("std", "it shows collapse"),
        ("dead", "it shows collapse"),
        ("uniformity", "features that ignore the images are the most uniform"),
        ("alignment", "a collapsed network aligns all views"),
        ("positive", "a collapsed network makes all views alike"),
        ("negative", "features that ignore the images are the least alike"),
        ("stable_rank", "a mean that all features share lowers it alone"),
        ("alpha", "neither end of it is better"),
        ("variance", "it is a term of the loss"),
    ],
)
def test_what_is_no_goal_is_refused_with_the_reason_and_what_to_take_instead(metric: str, reason: str, mode: dict):
    with pytest.raises(ConfigError, match=f"metric={metric} is no goal: .*{reason}.*; choose by one of ") as refused:
        a_sweep(run={"method": "vicreg"}, metric=metric, **mode)
    offered = str(refused.value).partition("choose by one of ")[2]
    assert offered == (
        "knn, linear, images_per_second, rank, rankme, knn_1, knn_5, knn_20, label_free, gap, separability, nesum, "
        "participation_ratio, self_cluster"
    )


def test_every_metric_has_a_better_end_or_a_reason_or_is_a_methods_own():
    for name, metric in shipped().items():
        assert metric.better or metric.no_goal, name
    unlabelled = {"rank", "rankme", "label_free", "gap", "separability", "nesum", "participation_ratio", "self_cluster"}
    assert {name for name, metric in shipped().items() if metric.caution} == {*unlabelled, "lidar", "ece"}
    assert set(shipped()) < set(known())


def test_an_evaluators_author_says_what_is_no_goal(own: str, tmp_path: Path):
    file = next(tmp_path.rglob("participation.py"))
    file.write_text(TOY.replace('"lower", headline', '"lower", no_goal="I say so", headline'))
    with pytest.raises(ConfigError, match="metric=participation is no goal: I say so; choose by one of knn"):
        a_sweep(metric="participation", run={"evaluate": {"also": [own]}})


def literals(path: Path) -> Iterator[tuple[int, set[str]]]:
    """Every tuple, list and set of texts in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            texts = {each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)}
            yield node.lineno, texts


def test_no_list_of_metrics_is_kept_outside_evaluators_and_contracts():
    engine = ROOT / "platform/eagleray"
    kept = [
        f"{path.relative_to(engine)}:{line}"
        for path in engine.rglob("*.py")
        if path.relative_to(engine).parts[0] not in ("evaluators", "contracts")
        for line, texts in literals(path)
        if len(texts & set(shipped())) > 1
    ]
    assert kept == []


def test_protocols_are_exactly_what_is_measured():
    run = load_run(None, [*TINY, "evaluate.protocols=[knn,linear,clusters]"])
    assert {name: run.evaluate.when(name) for name in measuring(run)} == {
        "clusters": "end",  # never by default
        "knn": "always",
        "linear": "end",
    }
    assert read_run(run.file()) == run
    built = assemble(run)
    during, at_end = (set(built.evaluation(built.method, built.autocast, final=final)) for final in (False, True))
    of = {name: set(one.metrics) for name, one in built.evaluation.evaluators.items()}
    assert during == of["knn"]
    tested = {f"test_{name}" for name in of["knn"] | of["linear"] | of["clusters"]}
    assert at_end == of["knn"] | of["linear"] | of["clusters"] | tested
    later = load_run(None, [*TINY, "evaluate.protocols=[knn]", "evaluate.knn.when=end", "evaluate.pairs.when=always"])
    assert (later.evaluate.when("knn"), later.evaluate.when("pairs")) == ("end", "never")
    assert measuring(load_run(None, ["evaluate.protocols=[]"])) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[knn,clustres]", r"evaluate.protocols: there is no evaluator clustres; did you mean clusters\?"),
        ("knn", "evaluate.protocols=knn is not a list"),
    ],
)
def test_protocols_that_are_none_are_refused(text: str, said: str):
    with pytest.raises(ConfigError, match=said):
        load_run(None, [f"evaluate.protocols={text}"])


def test_a_sweep_by_what_its_protocols_leave_out_is_refused():
    with pytest.raises(ConfigError, match=r"not measured, as run.evaluate.protocols does not name knn"):
        a_sweep(run={"evaluate": {"protocols": ["linear"]}}, metric="knn")


def test_protocols_that_cannot_measure_are_refused_before_training():
    for protocols, more, said in (
        ("[accuracy]", [], "accuracy cannot measure this run: simclr has no classifier"),
        (
            "[collapse,knn]",
            ["data.validation=0"],
            "knn cannot measure this run: there are no validation images to measure it on; set "
            r"run.data.validation=0.1, or name others \(collapse, dimension, ",
        ),
    ):
        with pytest.raises(ConfigError, match=f"evaluate.protocols: {said}"):
            check_run(load_run(None, [*TINY, f"evaluate.protocols={protocols}", *more]))


def test_numbers_have_their_images_and_intervals():
    run = load_run(None, [*TINY, "evaluate.protocols=[knn,linear,collapse,retrieval]", "evaluate.knn.queries=9"])
    built = assemble(run)
    found = built.evaluation(built.method, built.autocast, final=True)
    held, tested = len(built.data.validation or ()), len(built.data.test or ())
    assert (found.numbers["knn"].images, found.numbers["test_knn_5"].images) == (9, 9)
    assert (found.numbers["linear"].images, found.numbers["test_linear"].images) == (held, tested)
    assert found.numbers["test_linear"].interval == wilson(found["test_linear"], tested)
    assert found.numbers["rank"].interval is None
    assert found.numbers["mean_average_precision"].interval
    assert found.numbers["knn"].settings == "k=200 temperature=0.07 queries=9"


def test_a_trained_run_is_measured_by_other_evaluators():
    run = load_run(None, [*TINY])
    asked = measured_by(run, ["clusters", "lidar"], ["evaluate.lidar.images=20", "evaluate.clusters.when=end"])
    assert {name for name in asked.evaluate.evaluators if asked.evaluate.when(name) != "never"} == {"clusters", "lidar"}
    assert asked.evaluate.lidar.images == 20
    assert asked.evaluate.when("clusters") == "end"
    assert measured_by(run, []) == run
    assert measured_by(run, (), ["evaluate.knn.k=5"]).evaluate.when("knn") == "always"
    for names, settings, said in (
        (["cluster"], [], "there is no evaluator cluster; did you mean clusters?"),
        ([], ["epochs=3"], "epochs=3 has no effect on a trained run"),
        (["lidar"], ["evaluate.lidar.views=1"], r"evaluate.lidar.views=1 is out of range"),
    ):
        with pytest.raises(ConfigError, match=said):
            measured_by(run, names, settings)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("corruptions", [], "corruptions cannot measure this run: these images have no labels"),
        ("accuracy", [], "accuracy cannot measure this run: simclr has no classifier"),
        (
            "pairs",
            ["method=supervised", "encoder=convnet"],
            "pairs cannot measure this run: supervised declares no views",
        ),
    ],
)
def test_what_a_trained_run_lacks_is_said(name: str, settings: list[str], said: str):
    run = load_run(None, settings)
    with pytest.raises(ConfigError, match=said):
        check_protocols(measured_by(run, [name]), labels=name != "corruptions", validation=True)
    check_protocols(measured_by(run, ["collapse", "corruptions"]), labels=True, validation=True)
