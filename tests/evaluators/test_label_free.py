"""`label_free` is NESum behind a gate that the untrained network sets, and training does not notice it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from eagleray.app.ready import check_sweep
from eagleray.config import Sweep, load_run, validated
from eagleray.config.metrics import WITHOUT_LABELS
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.features import Features
from eagleray.evaluators.collapse import Collapse, collapse
from eagleray.evaluators.label_free import LabelFree
from eagleray.evaluators.spectrum import Spectrum, spectrum
from eagleray.loop import train
from eagleray.runs.assemble import assemble
from eagleray.runs.checkpoint import load_checkpoint

RUN = ["data.limit=160", "batch_size=40", "epochs=2", "encoder.width=8", "threads=1", "device=cpu", "precision=fp32",
       "evaluate.linear.when=never"]  # fmt: skip


@dataclass
class Both:
    """The `Encodings` of a network and of the untrained one."""

    evaluated: Features
    untrained: Features


def features(directions: int, width: int = 64, count: int = 3000) -> Tensor:
    """Draw features that vary evenly in some directions."""
    draw = torch.Generator().manual_seed(directions)
    return torch.randn(count, directions, generator=draw) @ torch.randn(directions, width, generator=draw)


def value(now: Tensor, before: Tensor) -> float:
    found = LabelFree(LabelFree.Config())(Both(Features(now), Features(before)))  # type: ignore[arg-type]
    assert found.images == 2048
    return found.numbers["label_free"]


def test_above_the_gate_it_is_nesum_and_below_it_the_share_of_directions():
    before = features(20)
    assert value(features(40), before) == pytest.approx(spectrum(features(40))["nesum"])
    few = collapse(features(4))["rank"] / collapse(before)["rank"]
    assert value(features(4), before) == pytest.approx(few - 1)
    assert value(features(2), before) < value(features(4), before) < 0 < value(features(15), before)
    assert value(torch.zeros(3000, 64), before) == -1


def test_evaluators_compute_spectra_once(monkeypatch: pytest.MonkeyPatch):
    """Most of their cost; those of the untrained network are the same at every evaluation."""
    computed = []
    real = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda gram: computed.append(len(gram)) or real(gram))
    before = Features(features(20))
    for now, expected in ((Features(features(40)), 4), (Features(features(15)), 2)):
        both: Any = Both(now, before)
        one, another = Collapse(Collapse.Config()), LabelFree(LabelFree.Config())
        found = [one(both).numbers, another(both).numbers, Spectrum(Spectrum.Config())(both).numbers]
        assert computed == [64] * expected
        computed.clear()
        assert found[0]["rank"] == collapse(now.features)["rank"]
        assert found[2] == spectrum(now.features)
        computed.clear()


def test_the_share_of_directions_is_that_of_the_effective_ranks():
    found = Collapse(Collapse.Config())(Both(Features(features(4)), Features(features(20))))  # type: ignore[arg-type]
    expected = collapse(features(4))["rank"] / collapse(features(20))["rank"]
    assert found.numbers["rank_share"] == pytest.approx(expected)
    assert found.numbers["rank"] == collapse(features(4))["rank"]
    alike = Both(Features(features(4)), Features(torch.ones(3000, 64)))
    assert Collapse(Collapse.Config())(alike).numbers["rank_share"] == 1  # type: ignore[arg-type]


def test_its_caution_has_the_figures_of_the_study():
    page = (Path(__file__).parents[2] / "docs/label-free.md").read_text(encoding="utf-8")
    own, by_chance = (re.search(rf"^\| {name} \| ([\d.]+) \|", page, re.M) for name in ("gated NESum", "a random pick"))
    assert own is not None
    assert by_chance is not None
    caution = LabelFree.metrics["label_free"].caution
    assert f"lay {own[1]} points of linear accuracy below the best, a random one {by_chance[1]} " in caution


def test_a_sweep_without_labels_is_told_of_it(tmp_path: Path):
    for number in range(40):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    run = {"data": {"name": "folder", "root": str(tmp_path)}, "batch_size": 16, "encoder": {"width": 4}}
    sweep = validated(Sweep, {"name": "s", "run": run, "vary": {"augment.flip": [0, 0.5]}})
    told = f"metric=knn: these images have no labels; set metric={WITHOUT_LABELS}, whose choices docs/"
    with pytest.raises(ConfigError, match=told):
        check_sweep(sweep, None)


def test_a_run_reports_it_beside_its_own_untrained_network(tmp_path: Path):
    run = load_run(None, RUN)
    *_, last = train(run, tmp_path / "run")
    assert last.metrics["label_free"] == pytest.approx(last.metrics["nesum"])
    built = assemble(run)
    assert built.data.validation is not None
    method = built.method.eval()
    method.load_state_dict(load_checkpoint(sorted((tmp_path / "run/checkpoints").glob("*.pt"))[-1])["method"])
    first = assemble(run).method.eval()
    seen: list[Any] = []

    class Asked(LabelFree):
        def __call__(self, encodings: Any) -> Any:
            seen.append((encodings.untrained.features, encodings.untrained.features))
            return super().__call__(encodings)

    built.evaluation.evaluators["label_free"] = Asked(LabelFree.Config())
    built.evaluation(method, built.autocast, final=False)
    expected = built.evaluation.encode(first.encode, built.data.validation, built.autocast)
    torch.testing.assert_close(seen[0][0], expected)  # weights lie in memory in another order
    assert seen[0][0] is seen[0][1], "encoded once"


def test_training_does_not_notice_it(tmp_path: Path):
    weights = []
    for name, when in (("with", "always"), ("without", "never")):
        settings = [f"evaluate.{each}.when={when}" for each in ("label_free", "collapse")]
        list(train(load_run(None, [*RUN, *settings]), tmp_path / name))
        weights.append(load_checkpoint(sorted((tmp_path / name / "checkpoints").glob("*.pt"))[-1])["method"])
    assert all(torch.equal(one, weights[1][key]) for key, one in weights[0].items())


def test_a_sweep_without_labels_may_choose_and_prune_by_it():
    run = {"data": {"name": "digits", "limit": 400}, "epochs": 3}
    question = {"name": "s", "run": run, "vary": {"method.temperature": [0.1, 0.5]}, "metric": "label_free",
                "scheduler": "asha", "trials": 2}  # fmt: skip
    check_sweep(validated(Sweep, question), None)
