"""Methods beside a run's: their losses are added on one encoder, and nothing else of the run changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eagleray.blocks import distributed
from eagleray.blocks.multitask import Multitask
from eagleray.blocks.optimizers import make_optimizer
from eagleray.config import Run, load_run, load_sweep, read_run
from eagleray.config.metrics import TEST, metrics_of, reported
from eagleray.config.registry import declared, find
from eagleray.config.run import changed
from eagleray.contracts.batch import Batch, EpochView
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.loop import train
from eagleray.runs.checkpoint import load_checkpoint
from eagleray.runs.method_checks import CHECKS, built, step
from eagleray.runs.processes import two_processes
from eagleray.runs.restore import newest_method
from method_cases import NOW, batch_of, settings

SMALL = ["encoder.width=8", "threads=1", "device=cpu", "precision=fp32"]
BESIDE = "beside=[rotnet,{name: transformations, loss_weight: 0.3}]"
# Those draw, keep a bank of all images, and change the encoder after a step.
DRAWING = [
    "image_size=32",
    "beside=[{name: decoupled_rotnet, projection: 4, negatives: 6}, {name: jigsaw, tile: 0.5, width: 6}, colorization]",
]
# Those of the paper, but for the one that needs videos.
PAPERS = ["beside=[context_prediction, colorization, {name: exemplar, classes: 30}]"]
TEACHING = ("byol", "dino", "moco")


def run_of(*more: str) -> Run:
    return load_run(None, [*settings("simclr"), BESIDE, *more])


def made(run: Run) -> Multitask:
    method = built(run)
    assert isinstance(method, Multitask)
    return method


def test_loss_and_gradient_are_the_weighted_sum_of_each_methods_alone():
    method = made(run_of())
    batch = batch_of(method)
    result = method(batch, NOW)
    main, rotnet, transformations = method.methods.values()
    first = len(main.views)
    assert len(batch.views) == first + 2
    parts = [
        main(Batch(batch.views[:first], batch.indices), NOW),
        rotnet(Batch([batch.views[first]], batch.indices), NOW),
        transformations(Batch([batch.views[first + 1]], batch.indices), NOW),
    ]
    expected = parts[0].loss + parts[1].loss + 0.3 * parts[2].loss
    weights = list(method.parameters())
    ours, theirs = (torch.autograd.grad(loss, weights) for loss in (result.loss, expected))
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert result.metrics["simclr_loss"] == parts[0].loss
    assert result.metrics["transformations_loss"] == parts[2].loss
    assert result.metrics["rotnet_rotation"] == parts[1].metrics["rotation"]
    torch.testing.assert_close(result.embeddings, parts[0].embeddings)


def test_there_is_one_encoder_whose_first_weights_are_those_of_the_method_alone():
    method, alone = made(run_of()), built(load_run(None, settings("simclr")))
    assert all(each.encoder is method.encoder for each in method.methods.values())
    assert len(list(method.parameters())) == len({id(each) for each in method.parameters()})
    for name, value in alone.state_dict().items():
        assert torch.equal(method.main.state_dict()[name], value), name


def test_what_methods_do_before_and_after_a_step_is_done(monkeypatch: pytest.MonkeyPatch):
    called = []
    for hook in ("before_epoch", "before_step", "after_step"):
        monkeypatch.setattr(Method, hook, lambda self, _, hook=hook: called.append((type(self).__name__, hook)))
    method = made(load_run(None, [*settings("simclr"), "beside=[rotnet]"]))
    method.before_epoch(EpochView(lambda: torch.empty(0), None, NOW))
    method.before_step(NOW)
    method.after_step(NOW)
    hooks = ("before_epoch", "before_step", "after_step")
    assert called == [(name, hook) for hook in hooks for name in ("SimCLR", "RotNet")]


def test_weights_of_a_task_follow_from_the_seed_and_its_name():
    """Those of other tasks, of the main method alone and of neighbouring seeds are drawn apart."""

    def classifier(seed: int, beside: str) -> Tensor:
        method = made(load_run(None, [*settings("simclr"), f"seed={seed}", f"beside=[{beside}]"]))
        return method.tasks["rotnet"].method.get_parameter("classifier.weight").detach()

    first = classifier(0, "rotnet")
    assert torch.equal(first, classifier(0, "transformations,rotnet"))
    torch.manual_seed(1)
    of_next_seed = torch.nn.Linear(first.shape[1], 4).weight.detach()
    for other in (classifier(1, "rotnet"), of_next_seed.double()):
        assert abs(float(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1])) < 0.5


@pytest.mark.parametrize("main", ["simclr", "msn", "context_encoder"])
def test_the_encoder_learns_with_the_rates_of_the_main_method(main: str):
    """Context encoder multiplies its rate, MaskFeat lets class tokens decay."""
    beside = {"simclr": "context_encoder", "msn": "maskfeat", "context_encoder": "rotnet"}[main]
    found = []
    for more in ([], [f"beside=[{beside}]"]):
        run = load_run(None, [*settings(main), "image_size=16", *more])
        method = built(run)
        of_weight = {
            id(weight): (group["factor"], group["decays"], group["constant"])
            for group in make_optimizer(method, run.optimizer).param_groups
            for weight in group["params"]
        }
        found.append([of_weight[id(weight)] for weight in method.encoder.parameters() if weight.requires_grad])
    assert found[0] == found[1]
    if main == "simclr":
        assert isinstance(method, Multitask)
        heads = {id(weight) for weight in method.tasks["context_encoder"].method.get_submodule("decoder").parameters()}
        factors = {of_weight[id(weight)][0] for weight in method.beside.parameters() if id(weight) in heads}
        assert factors == {10}


def test_labels_are_shown_to_the_main_method_alone(monkeypatch: pytest.MonkeyPatch):
    shown = {}
    monkeypatch.setattr(Method, "before_epoch", lambda self, epoch: shown.update({type(self).__name__: epoch.labelled}))
    method = made(load_run(None, [*settings("fixmatch"), "beside=[rotnet]"]))
    labelled = (torch.tensor([90, 91]), torch.tensor([0, 1]))
    method.before_epoch(EpochView(lambda: torch.empty(0), labelled, NOW))
    assert shown == {"FixMatch": labelled, "RotNet": None}
    seen = []
    for each in method.methods.values():
        each.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].labelled))
    batch = replace(batch_of(method), labelled=batch_of(method.main).labelled)
    method(batch, NOW)
    assert seen == [batch.labelled, None]


@pytest.mark.parametrize("check", ["resuming", "randomness", "finite numbers"])
@pytest.mark.parametrize("main", ["simclr", "byol"])
def test_methods_beside_that_draw_pass_the_checks(main: str, check: str):
    assert list(CHECKS[check](load_run(None, [*settings(main), *DRAWING]))) == []


@pytest.mark.parametrize("main", ["context_prediction", "dino", "byol"])
@pytest.mark.parametrize("beside", ["[colorization]", "[moco,colorization]"])
def test_beside_colorization_all_see_luma_alone(tmp_path: Path, main: str, beside: str):
    """Also teachers, which are copied from the encoder and follow it, wherever colorization stands."""
    images = write_images(tmp_path / "images")
    run = load_run(None, [f"method={main}", f"beside={beside}", *images, *SMALL, "batch_size=16", "epochs=1"])
    *_, _last = train(run, tmp_path / "run")
    method = newest_method(tmp_path / "run")
    assert isinstance(method, Multitask)
    luma = method.tasks["colorization"].method.get_buffer("luma")
    pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    grey = (pictures * luma).sum(1, keepdim=True).expand_as(pictures)
    teachers = [each.get_submodule("teacher")[0] for name, each in method.methods.items() if name in TEACHING]
    assert len(teachers) == (main in TEACHING) + ("moco" in beside)
    for teacher in teachers:
        torch.testing.assert_close(teacher(pictures), teacher(grey), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.encode(pictures), method.encode(grey), rtol=1e-4, atol=1e-5)
    plain = load_run(None, [f"method={main}", *images, *SMALL, "batch_size=16", "epochs=1"])
    *_, _last = train(plain, tmp_path / "plain")
    seeing = newest_method(tmp_path / "plain")
    assert (seeing.encode(pictures) - seeing.encode(grey)).abs().max() > 1e-2


def test_pictures_of_methods_beside_have_their_names_behind_them():
    method = made(run_of()).eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotnet = method.tasks["rotnet"].method.picture(images)
    tasks = {"rotnet": ("turned", "turned back"), "transformations": ("changed", "changed back")}
    assert list(method.picture(images)) == [f"{title} ({name})" for name in tasks for title in tasks[name]]
    assert torch.equal(method.picture(images)["turned (rotnet)"], rotnet["turned"])


def write_images(folder: Path) -> list[str]:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(48):
        place = folder / "train" / f"class{number % 2}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        rough = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        rough.resize((32, 32), Image.Resampling.BICUBIC).save(place)
    return ["data=folder", f"data.root={folder}", f"data.cache={folder}", "data.validation=0.2"]


@pytest.fixture
def digits() -> list[str]:
    return ["data=digits", "data.limit=200", *SMALL, "batch_size=64", "evaluate.knn.k=5", "evaluate.linear.when=never"]


@pytest.mark.parametrize(
    "method", [["method=simclr"], ["method=byol"], ["method=fixmatch", "labels.per_class=4", "labels.ratio=3"]]
)
def test_a_run_reports_what_it_said_it_would_and_is_found_as_it_was_left(
    tmp_path: Path, digits: list[str], method: list[str]
):
    run = load_run(None, [*method, BESIDE, *digits, "epochs=2"])
    reports = [report for report in train(run, tmp_path) if report.epoch_ended]
    assert {name.removeprefix(TEST) for name in reports[-1].metrics} <= reported(run)
    assert {"rotnet_loss", "rotnet_rotation", "transformations_loss"} <= set(reports[-1].metrics)
    assert reports[-1].checkpoint is not None
    state = load_checkpoint(reports[-1].checkpoint)
    found = newest_method(tmp_path)
    for name, value in state["method"].items():
        assert torch.equal(found.state_dict()[name], value), name


def test_a_checkpoint_holds_the_encoder_once(tmp_path: Path, digits: list[str]):
    sizes = []
    for name, more in (("alone", []), ("together", ["beside=[rotnet]"])):
        run = load_run(None, ["method=simclr", *digits, "encoder.width=64", "epochs=1", *more])
        *_, last = train(run, tmp_path / name)
        assert last.checkpoint is not None
        sizes.append(last.checkpoint.stat().st_size)
    assert sizes[1] < 1.1 * sizes[0]


@pytest.mark.parametrize("beside", [[BESIDE], PAPERS], ids=["digits", "the paper's"])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, digits: list[str], images: list[str], beside: list[str]):
    data = digits if beside == [BESIDE] else [*images, *SMALL, "batch_size=16"]
    run = load_run(None, ["method=byol", *beside, *data, "epochs=2", "checkpoints.keep=3"])
    reports = [report for report in train(run, tmp_path / "whole") if report.epoch_ended]
    *_, last = train(run, tmp_path / "resumed", resume_from=reports[0].checkpoint)
    whole, resumed = (load_checkpoint(each.checkpoint)["method"] for each in (reports[-1], last))  # type: ignore[arg-type]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


BESIDE_ANOTHER = [
    name
    for name, one in declared("method").items()
    if name != "simclr"
    and not one.needs & {"labels", "only_labels", "trained_encoder"}
    and not one.values["only_encoder"]
]
FEW = {
    "deepcluster": "clusters: 3",
    "swav": "prototypes: 8",
    "w_mse": "sub_batch: 16, projection: 8",
}  # for two steps of 16 images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("name", BESIDE_ANOTHER)
def test_every_method_that_may_be_beside_another_trains_and_reports_there(name: str, images: list[str], tmp_path: Path):
    needs_vit = "tokens" in find("method", name).needs
    network = ["encoder=vit_tiny", "encoder.depth=2", "encoder.dim=32"] if needs_vit else ["encoder.width=8"]
    beside = f"beside=[{{name: {name}, {FEW.get(name, 'loss_weight: 1')}}}]"
    run = load_run(None, ["method=simclr", beside, *images, *SMALL[1:], *network, "batch_size=16", "epochs=1"])
    *_, last = train(run, tmp_path)
    assert {f"{name}_{metric}" for metric in ("loss", *find("method", name).values["metrics"])} <= set(last.metrics)
    assert {metric.removeprefix(TEST) for metric in last.metrics} <= reported(run)


def worker(file: dict) -> dict[str, Tensor]:
    method = built(read_run(file))
    if distributed.world_size() > 1:
        distributed.synchronise_batch_norm(method)
        assert all(each.encoder is method.encoder for each in method.methods.values())  # type: ignore[attr-defined]
    return step(method, stepper=distributed.data_parallel(method))


@pytest.mark.slow
@pytest.mark.parametrize("beside", [[BESIDE], DRAWING], ids=["drawing nothing", "drawing"])
def test_two_workers_take_the_step_of_one(beside: list[str]):
    file = load_run(None, [*settings("simclr"), *beside]).file()
    alone = worker(file)
    assert any(name.startswith("gradient") for name in alone)
    for each in two_processes(worker, file):
        torch.testing.assert_close(each, alone, rtol=1e-7, atol=1e-9)


def test_they_have_the_settings_of_the_recipe_and_are_recorded():
    small, paper = (load_run(None, ["beside=[jigsaw]", f"recipe={recipe}"]) for recipe in ("small", "paper"))
    widths = [run.beside[0].config.width for run in (small, paper)]  # type: ignore[attr-defined]
    assert widths[0] < widths[1]
    typed = load_run(None, ["beside=[{name: jigsaw, width: 77, loss_weight: 2}]"])
    assert read_run(typed.file()) == typed
    assert changed(typed, {"epochs": 3}).beside == typed.beside
    assert (typed.beside[0].settings.loss_weight, typed.beside[0].config.width) == (2, 77)  # type: ignore[attr-defined]


def test_numbers_of_methods_beside_have_their_names_before_them():
    run = load_run(None, [BESIDE])
    table = metrics_of(run)
    assert table["rotnet_rotation"].meaning.endswith("of rotnet")
    assert {"simclr_loss", "rotnet_loss", "transformations_loss"} <= set(table)
    assert "simclr_loss" not in metrics_of(load_run(None, []))


def test_a_loss_that_other_terms_are_added_to_does_not_show_collapse():
    alone = load_run(None, ["method=simsiam"])
    assert alone.collapsed_loss == -1
    assert load_run(None, ["method=simsiam", "beside=[rotnet]"]).collapsed_loss is None
    assert load_run(None, ["method=simsiam", "koleo=0.1"]).collapsed_loss is None


def test_a_sweep_compares_sets_of_methods(tmp_path: Path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: tasks\nquestion: Which?\nrun: {data: digits, epochs: 1}\nseeds: 1\nmetric: knn\n"
        "vary:\n  beside: [[], [rotnet], [rotnet, {name: jigsaw, loss_weight: 0.5}]]\n"
    )
    runs = load_sweep(file, []).probes()
    assert [[task.name for task in run.beside] for run in runs] == [[], ["rotnet"], ["rotnet", "jigsaw"]]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["beside=[nope]"], "beside: there is no method 'nope'"),
        (["beside=[simclr]"], "beside has simclr twice, or it is the run's method"),
        (["beside=[rotnet,rotnet]"], "beside has rotnet twice"),
        (["beside=[fixmatch]"], "beside: fixmatch needs labels"),
        (["beside=[finetune]"], "beside: finetune needs labels"),
        (["beside=[mae]"], "beside: mae does not train encoder=convnet"),
        (["beside=[kmeans_features]"], "beside: kmeans_features does not train encoder=convnet"),
        (["method=supervised", "beside=[rotnet]"], "beside: supervised sees no unlabelled images"),
        (["beside=[{name: rotnet, rotation: 2}]"], r"unknown key beside.rotation; did you mean beside.rotations\?"),
        (["beside=[{name: rotnet, loss_weight: 0}]"], "beside.loss_weight=0 is out of range"),
        (["beside=[{name: rotnet, loss_weight: true}]"], "beside.loss_weight=true is not a number"),
        (["beside=rotnet"], r"beside=rotnet is not a list; lists are written \[a, b\]"),
        (["beside=[3]"], "beside=3 is not a name"),
        (["beside=[{loss_weight: 2}]"], "beside=null is not a name"),
        (["recipe=paper", "beside=[{loss_weight: 2}]"], "beside=null is not a name"),
    ],
)
def test_methods_that_cannot_be_beside_are_refused(typed: list[str], says: str):
    with pytest.raises(ConfigError, match=says):
        load_run(None, typed)
