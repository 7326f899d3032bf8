"""Trained runs as parts of other runs: what is loaded, what is not asked for, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagleray.config import load_run
from eagleray.config.registry import find
from eagleray.contracts.errors import ConfigError, Skipped
from eagleray.contracts.method import Method
from eagleray.encoders.pretrained import Pretrained
from eagleray.loop import train
from eagleray.runs.assemble import build_method
from eagleray.runs.checkpoint import checkpoints, keep_weights, load_checkpoint, save_checkpoint
from eagleray.runs.record import Record
from eagleray.runs.restore import evaluated, trained
from method_cases import INFO, METHODS, finished_run, own

TINY = ["data.limit=64", "batch_size=16", "encoder.width=4", "method.hidden=8", "threads=1", "device=cpu"]
SIMCLR = ["method=simclr", "method.hidden=8", "encoder.width=4"]
IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def finetune(run: Path, *settings: str) -> Method:
    overrides = ["method=finetune", "encoder=pretrained", f"encoder.run={run}", *settings]
    return build_method(load_run(None, overrides), INFO).eval()


def refused(run: Path) -> str:
    with pytest.raises(ConfigError) as error:
        finetune(run)
    assert "\n" not in str(error.value)
    return str(error.value)


@torch.no_grad()
def features(method: Method) -> torch.Tensor:
    return method.encode(IMAGES)


def test_a_trained_method_is_the_one_that_was_saved(tmp_path: Path):
    run = load_run(None, [*SIMCLR, "seed=3"])
    place = finished_run(tmp_path / "run", INFO, *SIMCLR, "seed=3")
    method, plan = trained(place)
    assert not method.training
    assert torch.equal(features(method), features(build_method(run, INFO).eval()))
    again, _ = trained(json.loads(json.dumps(plan)))  # plain values
    assert again.state_dict().keys() == method.state_dict().keys()
    assert not torch.equal(features(again), features(method))  # as built: its weights are yet to be loaded


def test_the_newest_checkpoint_counts(tmp_path: Path):
    place = finished_run(tmp_path / "run", INFO, *SIMCLR)
    held = load_checkpoint(checkpoints(place)[-1])
    held["method"] = {key: torch.zeros_like(value) for key, value in held["method"].items()}
    save_checkpoint(place, {**held, "step": 2}, keep=9)
    assert all(not value.any() for value in trained(place)[0].state_dict().values())


def test_the_weights_alone_are_enough_but_for_training_on(tmp_path: Path):
    run = load_run(None, [*TINY, "epochs=1"])
    for _ in train(run, tmp_path / "run"):
        pass
    record = Record.create(tmp_path / "run", name="run", experiment="e", params={}, run=run.file())
    record.finish("finished")
    before, whole = checkpoints(tmp_path / "run"), evaluated(run, tmp_path / "run")
    size = sum(path.stat().st_size for path in before)
    kept = keep_weights(tmp_path / "run")
    assert kept == keep_weights(tmp_path / "run"), "twice is once"
    assert kept is not None
    assert checkpoints(tmp_path / "run") == [kept]
    assert kept.stat().st_size < 0.6 * size, "the two moments of Adam are gone"
    assert evaluated(run, tmp_path / "run") == whole
    with pytest.raises(ConfigError, match=r"has the weights alone, .* or the sweep with keep=all$"):
        next(train(run, tmp_path / "run"))


def test_weights_are_kept_from_the_newest_checkpoint_that_is_sound(tmp_path: Path):
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step, "method": {}, "optimizer": {}}, keep=2)
    checkpoints(tmp_path)[-1].write_bytes(b"damaged")
    with pytest.warns(Skipped):
        kept = keep_weights(tmp_path)
    assert kept is not None
    assert checkpoints(tmp_path) == [kept]
    assert load_checkpoint(kept) == {"step": 1, "method": {}}
    assert keep_weights(tmp_path / "nothing") is None


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path):
    place = finished_run(tmp_path / "run", INFO, *SIMCLR)
    torch.manual_seed(5)
    trained(place)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("method", ["simclr", "fixmatch", "simclr_v2"])
def test_the_pretrained_network_is_what_the_method_keeps_and_all_of_it_learns(method: str, tmp_path: Path):
    place = finished_run(tmp_path / "run", INFO, f"method={method}", "encoder.width=4")
    source, _ = trained(place)
    encoder = finetune(place, "seed=7").encoder
    assert isinstance(encoder, Pretrained)
    with torch.no_grad():
        wanted = source.backbone(IMAGES)
        assert torch.equal(encoder(IMAGES), wanted)
    assert encoder.dim == wanted.shape[1]
    assert all(p.requires_grad for p in encoder.parameters())


def test_a_run_that_was_itself_built_on_a_run_needs_that_one_no_more(tmp_path: Path):
    first = finished_run(tmp_path / "first", INFO, *SIMCLR)
    second = finished_run(
        tmp_path / "second", INFO, "method=byol", "method.hidden=8", "encoder=pretrained", f"encoder.run={first}"
    )
    wanted = features(finetune(first))
    first.rename(tmp_path / "gone")
    assert torch.equal(features(finetune(second)), wanted)


def test_a_relative_directory_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    finished_run(tmp_path / "run", INFO, *SIMCLR)
    monkeypatch.chdir(tmp_path)
    run = load_run(None, ["method=finetune", "encoder=pretrained", "encoder.run=run"])
    assert run.file()["encoder"]["run"] == str(tmp_path / "run")


def test_a_run_that_is_missing_unfinished_or_no_run_is_refused_in_a_sentence(tmp_path: Path):
    assert refused(tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'} is not the directory of a run")
    place = finished_run(tmp_path / "run", INFO, *SIMCLR)
    (place / "status.json").unlink()
    assert refused(place).startswith(f"{place} is not a finished run, it is running: continue it with --resume")
    Record.open(place).finish("stopped")
    assert "it is stopped" in refused(place)
    sweep = Record.create(tmp_path / "sweep", name="s", experiment="e", params={}, run={}, tags={"kind": "sweep"})
    sweep.finish("finished")
    said = refused(sweep.directory)
    assert said.startswith(f"{sweep.directory} has no checkpoint")
    assert said.endswith("name the directory of another run (those of a sweep are in its trials)")


def test_weights_that_do_not_fit_or_say_too_little_are_refused_in_a_sentence(tmp_path: Path):
    place = finished_run(tmp_path / "run", INFO, *SIMCLR)
    (saved,) = checkpoints(place)
    held = load_checkpoint(saved)
    save_checkpoint(place, {**held, "method": {"other": torch.ones(1)}}, keep=1)
    assert refused(place).startswith(f"the weights in {place} do not fit today's version of its method")
    held.pop("blueprint")
    save_checkpoint(place, held, keep=1)
    assert refused(place).startswith(f"the checkpoint in {place} is of an older version and does not describe")


def test_images_of_another_kind_are_refused_in_a_sentence(tmp_path: Path):
    large = finished_run(tmp_path / "large", replace(INFO, image_size=16), *SIMCLR)
    assert refused(large).endswith("of 16 pixels, and these have 8: set image_size=16")
    assert refused(large).startswith(f"encoder.run={large} was trained on images")
    grey = finished_run(tmp_path / "grey", replace(INFO, channels=1), *SIMCLR)
    assert "of 1 channels, and these have 3" in refused(grey)


def test_small_crops_are_of_whole_patches_of_the_trained_network(tmp_path: Path):
    vit = ["method=mae", "encoder=vit_tiny", "encoder.depth=1", "encoder.dim=32", "encoder.patch_size=2"]
    place = finished_run(tmp_path / "run", INFO, *vit)
    dino = ["method=dino", "encoder=pretrained", f"encoder.run={place}", "method.prototypes=8"]
    with pytest.raises(
        ConfigError, match=r"^method\.local_size=5 must be a multiple of the patches' 2 pixels: take 4$"
    ):
        build_method(load_run(None, [*dino, "method.local_size=5"]), INFO)


def test_the_run_must_be_named():
    with pytest.raises(ConfigError, match=r"^encoder\.run is missing \(directory of a finished run"):
        load_run(None, ["encoder=pretrained"])


def takes_any_encoder(name: str) -> bool:
    declaration = find("method", name)
    return "tokens" not in declaration.needs and not declaration.values["only_encoder"]


@pytest.mark.parametrize("name", [name for name in METHODS if takes_any_encoder(name)])
def test_no_method_changes_a_trained_network_before_its_first_step(name: str, tmp_path: Path):
    place = finished_run(
        tmp_path / "run", INFO, "method=moco_v3", "method.hidden=8", "encoder=vit_tiny", "encoder.depth=1",
        "encoder.dim=32", "seed=3",
    )  # fmt: skip
    source, _ = trained(place)
    own_settings = [each for each in own(name, "SMALL") if not each.startswith("encoder")]
    overrides = [f"method={name}", *own_settings, "encoder=pretrained", f"encoder.run={place}"]
    encoder = build_method(load_run(None, overrides), INFO).encoder
    assert isinstance(encoder, Pretrained)
    found = encoder.network.state_dict()
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(found[key], value), key
