"""The loop: resumed equals never stopped, labels stay out, a broken loss ends it, schedules and decay as declared."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from eagleray.augment import evaluation_view
from eagleray.blocks import distributed
from eagleray.blocks.optimizers import decays, make_optimizer, set_rates
from eagleray.blocks.schedules import cosine, warmup_cosine
from eagleray.config import Run, load_run
from eagleray.config.registry import find
from eagleray.config.run import LABELS, changed
from eagleray.contracts.batch import DataInfo, EpochView, LabelledBatch, Progress
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import ParameterGroup
from eagleray.contracts.recipe import Recipe
from eagleray.contracts.report import Diverged, Report
from eagleray.data.images import Data
from eagleray.data.loader import BatchLoader
from eagleray.loop import train
from eagleray.runs.assemble import assemble, build_method, fitted, images_of
from eagleray.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from eagleray.runs.device import uses_bf16
from eagleray_methods.fixmatch import FixMatch
from eagleray_methods.simclr import SimCLR
from method_cases import INFO, METHODS, own, settings

pytestmark = pytest.mark.slow

TINY = ["data.limit=160", "batch_size=56", "epochs=2", "threads=1", "evaluate.linear.when=never"]


def tiny(name: str, *more: str) -> Run:
    """Return a run of two epochs of two steps on a few digits."""
    few = ["labels.per_class=3"] if find("method", name).needs & LABELS else []
    return load_run(None, [*settings(name), *own(name, "ON_DIGITS"), *TINY, *few, *more])


def finish(run: Run, directory: Path, data: Data | None = None) -> Report:
    last = None
    for last in train(run, directory, data=data):  # noqa: B007
        pass
    assert last is not None
    assert last.done
    return last


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(directory)[-1])["method"]


@pytest.mark.parametrize("asked", [*([name] for name in METHODS), ["simclr", "optimizer.name=muon"]], ids=" ".join)
def test_a_resumed_run_ends_with_bitwise_the_weights_of_one_never_stopped(asked: list[str], tmp_path: Path):
    """From every checkpoint, in the middle of an epoch too."""
    run = tiny(*asked, "checkpoints.every_steps=1", "checkpoints.keep=9")
    whole = finish(run, tmp_path / "whole")
    saved = checkpoints(tmp_path / "whole")
    assert len(saved) == 4
    for place in saved[:-1]:
        resumed = tmp_path / place.stem
        (resumed / "checkpoints").mkdir(parents=True)
        (resumed / "checkpoints" / place.name).write_bytes(place.read_bytes())
        report = finish(run, resumed)
        for key, value in weights(tmp_path / "whole").items():
            assert torch.equal(weights(resumed)[key], value), f"{key} after resuming from {place.stem}"
        assert report.metrics == whole.metrics


@pytest.mark.parametrize("name", ["simclr", "fixmatch"])
def test_a_run_of_steps_ends_after_exactly_these_wherever_it_was_interrupted(name: str, tmp_path: Path):
    """An epoch has four steps, so the second of six has two: a checkpoint lies before it, inside it, after it."""
    few = ["labels.per_class=3"] if name == "fixmatch" else []
    run = load_run(None, [*settings(name), *few, *(each for each in TINY if "epochs" not in each), "steps=6",
                          "batch_size=40", "checkpoints.every_steps=1", "checkpoints.keep=9"])  # fmt: skip
    reports = list(train(run, tmp_path / "whole"))
    ended = [each.progress for each in reports if each.epoch_ended]
    assert [(each.step, each.epoch, each.epochs, each.steps) for each in ended] == [(4, 1, 2, 6), (6, 2, 2, 6)]
    assert reports[-1].done
    assert "knn" in reports[-1].metrics
    assert (tmp_path / "whole/artifacts/evaluation.csv").exists(), "the short epoch is the last, and evaluated as such"
    saved = checkpoints(tmp_path / "whole")
    assert [load_checkpoint(each)["step"] for each in saved] == [1, 2, 3, 4, 5, 6]
    for place in saved[:-1]:
        resumed = tmp_path / place.stem
        (resumed / "checkpoints").mkdir(parents=True)
        (resumed / "checkpoints" / place.name).write_bytes(place.read_bytes())
        report = finish(run, resumed)
        for key, value in weights(tmp_path / "whole").items():
            assert torch.equal(weights(resumed)[key], value), f"{key} after resuming from {place.stem}"
        assert report.metrics == reports[-1].metrics
    again = list(train(run, tmp_path / "whole"))
    assert [(each.metrics, each.done) for each in again] == [(reports[-1].metrics, True)]


def test_as_many_steps_as_some_epochs_have_are_the_same_run(tmp_path: Path):
    run = tiny("simclr")
    finish(run, tmp_path / "epochs")
    finish(changed(run, {"epochs": None, "steps": 4}), tmp_path / "steps")
    one, two = (weights(tmp_path / name) for name in ("epochs", "steps"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_complete_run_repeats_its_last_report_and_trains_nothing(tmp_path: Path):
    run = tiny("simclr")
    first = finish(run, tmp_path)
    again = list(train(run, tmp_path))
    assert [(r.metrics, r.done) for r in again] == [(first.metrics, True)]


@pytest.mark.parametrize("name", [n for n in METHODS if not find("method", n).needs & LABELS])
def test_no_label_reaches_a_self_supervised_method(name: str, tmp_path: Path):
    run = tiny(name)
    for place, scramble in (("a", False), ("b", True)):
        data = images_of(run)
        if scramble:
            assert data.train.labels is not None
            data.train.labels = np.random.default_rng(0).permutation(data.train.labels)
        finish(run, tmp_path / place, data)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_reports_come_after_every_epoch_and_count_each_step_once(tmp_path: Path):
    run = tiny("simclr", "epochs=3", "checkpoints.every_steps=1")
    reports = list(train(run, tmp_path))
    assert [r.progress.epoch for r in reports if r.epoch_ended] == [1, 2, 3]
    steps = [r.progress.step for r in reports]
    assert all(a < b for a, b in pairwise(steps))
    assert {"loss", "knn", "z_std", "z_rank", "std", "rank", "alignment"} <= set(reports[-1].metrics)


def test_a_broken_loss_ends_the_run_and_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forward = SimCLR.forward

    def breaks(self, batch, progress):
        result = forward(self, batch, progress)
        return result if progress.step != 2 else type(result)(result.loss * float("nan"), result.embeddings)

    monkeypatch.setattr(SimCLR, "forward", breaks)
    with pytest.raises(Diverged, match=r"nan at step 3; the last good checkpoint is .*step-000000002"):
        list(train(tiny("simclr"), tmp_path))
    assert [p.name[:14] for p in checkpoints(tmp_path)] == ["step-000000002"]
    assert all(torch.isfinite(v).all() for v in weights(tmp_path).values())


def test_runs_that_do_not_fit_the_data_are_refused(tmp_path: Path):
    for setting, words in (
        ("batch_size=4096", "batch_size=4096 is larger than the data"),
        ("augment.grayscale=0.5", "grey already"),
    ):
        with pytest.raises(ConfigError, match=words):
            next(train(load_run(None, [setting]), tmp_path / "never"))
    assert not (tmp_path / "never").exists()


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path, {"step": 1, "x": torch.ones(3)}, keep=2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {"step": 2}, keep=2)
    monkeypatch.undo()
    assert [p.name[:14] for p in checkpoints(tmp_path)] == ["step-000000001"]
    for step in (3, 4):
        save_checkpoint(tmp_path, {"step": step}, keep=2)
    assert [load_checkpoint(p)["step"] for p in checkpoints(tmp_path)] == [3, 4]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2  # nor is what was left unfinished kept


def test_the_warm_up_is_linear_and_the_rest_half_a_cosine():
    def at(step: int) -> float:
        return warmup_cosine(1.0, 0.1, 2, Progress(step, 100, 0, 10))

    assert at(0) == pytest.approx(1 / 20)
    assert at(9) == pytest.approx(0.5)
    assert at(20) == pytest.approx(1.0)
    assert at(60) == pytest.approx(0.55)
    assert at(100) == pytest.approx(0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3.0), T_max=8, eta_min=0.5
    )
    for step in range(8):
        assert cosine(3.0, 0.5, step / 8) == pytest.approx(reference.get_last_lr()[0])
        reference.optimizer.step()
        reference.step()


def test_a_short_last_epoch_is_its_part_of_one_to_schedules():
    halfway = Progress(50, 150, 0, 2, steps_per_epoch=100)
    assert (halfway.length, halfway.epochs_done) == (1.5, pytest.approx(0.5))
    assert warmup_cosine(1.0, 0.0, 1, halfway) == pytest.approx(0.51)
    assert warmup_cosine(1.0, 0.0, 1, Progress(100, 150, 1, 2, steps_per_epoch=100)) == pytest.approx(1.0)


def test_a_rate_that_drops_falls_by_the_recipes_factor_each_time():
    recipe = Recipe(name="sgd", lr=3, lr_scaling="none", drops=(0.6, 0.8), warmup_epochs=1)
    optimizer = make_optimizer(build_method(load_run(None, settings("simclr")), INFO), recipe)
    for step, rate in ((4, 1.5), (10, 3.0), (59, 3.0), (60, 0.3), (79, 0.3), (80, 0.03), (99, 0.03)):
        assert set_rates(optimizer, recipe, 256, Progress(step, 100, 0, 10)) == pytest.approx(rate)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    fifth = Recipe(name="sgd", lr=5, lr_scaling="none", drops=(0.3, 0.6), drop_factor=0.2)
    rates = [set_rates(optimizer, fifth, 256, Progress(step, 100, 0, 10)) for step in (29, 30, 60)]
    assert rates == pytest.approx([5, 1, 0.2])
    with pytest.raises(ConfigError, match="drops and final_lr exclude each other"):
        load_run(None, ["optimizer.drops=[0.5]", "optimizer.final_lr=0.1"])


def test_rates_scale_with_the_batch_and_decay_spares_what_it_should():
    assert Recipe(lr=0.3, lr_scaling="linear").peak_lr(1024) == pytest.approx(1.2)
    assert Recipe(lr=0.3, lr_scaling="sqrt").peak_lr(1024) == pytest.approx(0.6)
    assert Recipe(lr=0.3, lr_scaling="none").peak_lr(1024) == pytest.approx(0.3)
    run = load_run(None, ["method=mae", "encoder.depth=1", "encoder.dim=32"])
    method = build_method(run, DataInfo(image_size=8, channels=3, samples=10, classes=None))
    spared = {n for n, p in method.named_parameters() if not decays(n, p)}
    for part in ("pos_embed", "cls_token", "mask_token", "norm1.weight", "attn.qkv.bias"):
        assert any(part in name for name in spared), part
    assert all("weight" in n and "norm" not in n for n, p in method.named_parameters() if decays(n, p))
    for name in ("adamw", "sgd", "lars", "muon"):
        optimizer = make_optimizer(method, Recipe(name=name, weight_decay=0.5, final_weight_decay=0.1))
        set_rates(
            optimizer,
            Recipe(name=name, lr=1, weight_decay=0.5, final_weight_decay=0.1),
            256,
            Progress(10, 10, 1, 1),
        )
        assert {g["decays"]: g["weight_decay"] for g in optimizer.param_groups} == {
            True: pytest.approx(0.1),
            False: 0.0,
        }
        trained = [p for p in method.parameters() if p.requires_grad]
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(trained)


def test_a_part_may_keep_its_rate_after_the_warm_up(monkeypatch: pytest.MonkeyPatch):
    def groups(self: SimCLR) -> list[ParameterGroup]:
        return [ParameterGroup(self.projector, schedule="constant")]

    monkeypatch.setattr(SimCLR, "parameter_groups", groups)
    method = build_method(load_run(None, settings("simclr")), INFO)
    recipe = Recipe(lr=1, lr_scaling="none", weight_decay=0.1, warmup_epochs=2)
    optimizer = make_optimizer(method, recipe)
    constant = {id(p) for p in method.projector.parameters()}
    for step, rate, fixed in ((4, 0.25, 0.25), (60, 0.5, 1.0), (100, 0.0, 1.0)):
        set_rates(optimizer, recipe, 256, Progress(step, 100, 0, 10))
        for group in optimizer.param_groups:
            is_constant = {id(p) in constant for p in group["params"]}
            assert group["lr"] == pytest.approx(fixed if is_constant == {True} else rate)
            assert len(is_constant) == 1
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(method.parameters()))


def test_a_method_of_labels_alone_has_whole_batches_of_them_and_asks_for_no_other_image(
    monkeypatch: pytest.MonkeyPatch,
):
    run = tiny("supervised")
    data = images_of(run)
    info = fitted(run, data.info)
    loader = BatchLoader(run, data, info, build_method(run, info), torch.device("cpu"))
    monkeypatch.setattr(data.train, "batches", None)
    batches = list(loader.epoch(0, 0))
    assert len(batches) == loader.steps_per_epoch == 2
    for batch in batches:
        assert batch.views == []
        assert batch.labelled is not None
        assert len(batch.labelled.targets) == run.batch_size  # which the learning rate is scaled by
    with pytest.raises(
        ConfigError, match=r"labels\.ratio=2: supervised uses no unlabelled images, a step has batch_size=56"
    ):
        tiny("supervised", "labels.ratio=2")


@pytest.mark.parametrize("name", ["byol", "dino", "moco"])
def test_a_teacher_has_the_memory_layout_of_its_student(name: str):
    method = assemble(tiny(name)).method
    kernels = [p for p in method.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert len(kernels) >= 4
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_draws_of_a_step_are_of_the_runs_seed_and_that_step():
    def drawn(step: int, *more: str) -> torch.Tensor:
        run = tiny("simclr", *more)
        return torch.rand(3, generator=build_method(run, fitted(run, INFO)).rng(step))

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))
    assert not torch.equal(drawn(5), drawn(5, "seed=1"))


def test_attention_in_bf16_on_a_cpu_leaves_out_the_kernel_that_is_slow_there(tmp_path: Path):
    def kernels(precision: str, directory: str) -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            finish(tiny("mae", f"precision={precision}", "epochs=1"), tmp_path / directory)
        return {event.key for event in seen.key_averages() if "dot_product" in event.key}

    assert any("flash" in name for name in kernels("fp32", "first"))
    assert not any("flash" in name for name in kernels("bf16", "second"))
    assert any("flash" in name for name in kernels("fp32", "third"))  # a process may train many runs


def test_precision_is_what_is_asked_for():
    cpu = torch.device("cpu")
    assert uses_bf16("bf16", cpu)
    assert not uses_bf16("fp32", cpu)


@pytest.mark.parametrize(
    ("vendor", "flags", "is_taken"),
    [
        ("AuthenticAMD", "avx512_bf16", True),
        ("GenuineIntel", "avx512_bf16 amx_bf16", True),
        ("GenuineIntel", "avx512_bf16", False),
        ("AuthenticAMD", "avx2", False),
    ],
)
def test_auto_takes_bf16_on_amds_cpus_and_those_with_amx(
    vendor: str, flags: str, is_taken: bool, monkeypatch: pytest.MonkeyPatch
):
    """AMD's and Intel's without AMX were measured (docs/performance.md)."""
    monkeypatch.setattr(Path, "read_text", lambda _: f"vendor_id : {vendor}\nflags : fpu {flags}\n")
    assert uses_bf16("auto", torch.device("cpu")) == is_taken


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_bf16(name: str, tmp_path: Path):
    report = finish(tiny(name, "precision=bf16", "epochs=1"), tmp_path)
    assert np.isfinite(report.metrics["loss"])
    assert all(v.dtype != torch.bfloat16 for v in weights(tmp_path).values())


def test_before_epoch_can_encode_every_training_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Once an epoch, in dataset order, with the statistics of evaluation, and the method back in training mode."""
    run = tiny("simclr", "precision=fp32")
    data = images_of(run)
    seen = []

    def before_epoch(self, epoch):
        features = epoch.embed()
        assert epoch.labelled is None
        assert self.training
        one = data.train.batches([torch.tensor([3])])
        shown = evaluation_view(next(iter(one)), data.info.image_size, data.info.mean, data.info.std)
        self.eval()
        torch.testing.assert_close(features[3:4], self.encode(shown))
        self.train()
        seen.append((epoch.progress.epoch, features.shape))

    monkeypatch.setattr(SimCLR, "before_epoch", before_epoch)
    finish(run, tmp_path, data)
    shape = (len(data.train), 384)  # four cells of 32 and of 64 channels
    assert seen == [(0, shape), (1, shape)]


def test_before_epoch_knows_the_labelled_images_and_no_other_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tiny("fixmatch", "precision=fp32")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    steps: list[LabelledBatch] = []
    forward = FixMatch.forward

    def before_epoch(self, epoch: EpochView):
        assert epoch.labelled is not None
        assert len(epoch.embed()) == self.data.samples
        seen.append(epoch.labelled)

    def watched(self, batch, progress):
        steps.append(batch.labelled)
        return forward(self, batch, progress)

    monkeypatch.setattr(FixMatch, "before_epoch", before_epoch)
    monkeypatch.setattr(FixMatch, "forward", watched)
    data = images_of(run)
    assert data.train.labels is not None
    finish(run, tmp_path, data)
    (places, classes), again = seen
    assert torch.equal(places, again[0])
    assert places.shape == classes.shape == (30,)  # three of each class
    assert np.array_equal(data.train.labels[places], classes)
    assert classes.bincount().tolist() == [3] * 10
    for few in steps:
        assert set(few.indices.tolist()) <= set(places.tolist())
        assert np.array_equal(data.train.labels[few.indices], few.targets)


def test_labelled_images_have_the_same_places_whoever_holds_them(monkeypatch: pytest.MonkeyPatch):
    run = tiny("fixmatch", "workers=2")
    data = images_of(run)
    info = fitted(run, data.info)
    loader = BatchLoader(run, data, info, build_method(run, info), torch.device("cpu"))
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        shares.append([batch.labelled for batch in loader.epoch(1, 0)])
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    for batch, first, second in zip(loader.epoch(1, 0), *shares, strict=True):
        assert batch.labelled is not None
        assert first is not None
        assert second is not None
        assert torch.equal(batch.labelled.indices, torch.cat([first.indices, second.indices]))
        assert torch.equal(batch.labelled.targets, torch.cat([first.targets, second.targets]))
