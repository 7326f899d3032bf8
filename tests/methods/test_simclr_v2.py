"""SimCLR v2: its loss is SimCLR's (test_losses.py), what of its head is kept, and the three commands end to end."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray import load_encoder
from eagleray.app import cli
from eagleray.blocks.losses import nt_xent
from eagleray.contracts.errors import ConfigError
from eagleray.runs.checkpoint import checkpoints, load_checkpoint
from eagleray.runs.record import Record
from eagleray.runs.restore import trained
from eagleray_methods.simclr_v2 import SimCLRv2
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16", "method.queue=16", "method.momentum=0.9"]
ON_DIGITS = ["method.queue=112"]
TINY = ["data.limit=320", "batch_size=64", "threads=1", "evaluate.linear.when=never", "precision=fp32"]
NOWHERE = "http://127.0.0.1:1"  # an address where nothing answers


def test_simclr_v2_is_simclrs_loss_behind_three_layers():
    method = small("simclr_v2", "method.queue=0").train()
    assert isinstance(method, SimCLRv2)
    batch = batch_of(method)
    layers = [part for part in method.projector if isinstance(part, torch.nn.Linear)]
    assert [(each.in_features, each.out_features) for each in layers] == [(method.encoder.dim, 16), (16, 16), (16, 128)]
    loss = method(batch, NOW).loss
    both = method.projector(method.encoder(torch.cat(batch.views)))
    torch.testing.assert_close(loss, nt_xent(*both.chunk(2), method.config.temperature))


def test_the_first_layer_of_the_head_is_kept_with_its_norm_and_activation():
    method = small("simclr_v2").eval()
    assert isinstance(method, SimCLRv2)
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        h = method.encode(images)
        first, norm = method.projector[0], method.projector[1]
        x = h @ first.weight.T
        x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        torch.testing.assert_close(method.backbone(images), x.clamp(min=0))


def test_the_memory_holds_what_the_averaged_network_says_of_the_last_batches_and_no_invention():
    method = small("simclr_v2").train()
    assert isinstance(method, SimCLRv2)
    batch, temperature = batch_of(method), method.config.temperature
    before = [p.clone() for p in method.teacher.parameters()]
    seen = []
    for step in range(3):
        embeddings = method.projector(method.encoder(torch.cat(batch.views)))
        known = torch.cat(seen[-2:]) if seen else None  # 16 rows are two batches; at first there are none
        expected = nt_xent(*embeddings.chunk(2), temperature, known)
        with torch.no_grad():
            seen.append(method.teacher(batch.views[1]))
        torch.testing.assert_close(method(batch, NOW).loss, expected)
        with torch.no_grad():
            for p in method.teacher.parameters():  # so that no two batches of keys are alike
                p.add_(0.1 * step + 0.05)
    method.load_state_dict(small("simclr_v2").state_dict())
    with torch.no_grad():
        for p in (*method.encoder.parameters(), *method.projector.parameters()):
            p.add_(1.0)
    method.after_step(NOW)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)


def test_a_memory_that_cannot_hold_whole_batches_is_refused():
    with pytest.raises(ConfigError, match=r"method\.queue=12 must hold whole batches of batch_size=8: take 16"):
        small("simclr_v2", "method.queue=12")


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Types `eagleray train …` in an empty directory; returns the directory of the run, or what was refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)

    def train(*settings: str) -> Path | str:
        before = set(Path("runs/eagleray").glob("*"))
        monkeypatch.setattr(sys, "argv", ["eagleray", "train", *settings])
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                assert set(Path("runs/eagleray").glob("*")) == before  # nothing was started
                return capsys.readouterr().err
        (place,) = set(Path("runs/eagleray").glob("*")) - before
        return place

    return train


def exported(run: Path, images: torch.Tensor) -> torch.Tensor:
    """Features by the encoder that a run leaves."""
    encoder = load_encoder(run)
    with torch.no_grad():
        return encoder(encoder.prepare(images))


@pytest.mark.slow
def test_the_three_commands(typed: Any):
    """Pretraining, fine-tuning with five labels a class, distillation; what each leaves loads without the others."""
    few = ["labels.per_class=5", "augment.crop_min=0.6", "augment.flip=0", "optimizer.lr=5e-3"]
    first = typed("method=simclr_v2", "method.hidden=24", "encoder.width=8", "epochs=4", *TINY)
    second = typed("method=finetune", f"encoder.run={first}", "epochs=6", *few, *TINY)
    third = typed("method=distillation", f"method.teacher={second}", "encoder.width=8", "epochs=12", *few, *TINY)

    pretrained, finetuned, student = (trained(run)[0] for run in (first, second, third))
    weight = finetuned.encoder.state_dict()["network.1.0.weight"]  # of the head's first layer
    start = pretrained.state_dict()["projector.0.weight"]
    assert 0 < float((weight - start).norm()) < 0.5 * float(start.norm())  # it went on from there, not far
    assert all(
        torch.equal(value, student.state_dict()[f"teacher.{key}"]) for key, value in finetuned.state_dict().items()
    )
    summaries = [Record.open(run).summary for run in (first, second, third)]
    assert "accuracy" not in summaries[0]
    assert summaries[1]["accuracy"] > 0.5  # of ten classes
    assert summaries[2]["accuracy"] > 0.5
    assert summaries[2]["agreement"] > 0.5

    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for run in (first, second):
        run.rename(f"{run}-moved")
    places = [Path(f"{first}-moved"), Path(f"{second}-moved"), third]
    assert [exported(run, images).shape for run in places] == [(5, 384), (5, 24), (5, 384)]
    held = load_checkpoint(checkpoints(places[1])[-1])["method"]
    with torch.no_grad():
        wanted = finetuned.encode(load_encoder(places[1]).prepare(images))
    assert torch.equal(finetuned.state_dict()["classifier.weight"], held["classifier.weight"])
    torch.testing.assert_close(exported(places[1], images), wanted)


@pytest.mark.slow
def test_a_chain_that_cannot_work_is_refused_before_anything_starts(typed: Any):
    said = typed("method=finetune", "encoder.run=runs/eagleray/none", "labels.per_class=5", *TINY)
    assert "none is not the directory of a run (it has no record.json)" in said
    assert said.endswith("`eagleray runs ls` lists them, as runs/EXPERIMENT/RUN\n")
    first = typed("method=simclr_v2", "method.hidden=8", "encoder.width=4", "epochs=1", *TINY)
    said = typed("method=distillation", f"method.teacher={first}", "labels.per_class=5", *TINY)
    assert said.startswith("eagleray: method.teacher=")
    assert "was trained by SimCLRv2, which has no classifier: fine-tune it first" in said
    assert said.count("\n") == 1
