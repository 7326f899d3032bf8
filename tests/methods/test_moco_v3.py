"""MoCo v3 against its algorithm, and what it does to a ViT."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eagleray.config import load_run
from eagleray.contracts.batch import Progress
from eagleray.encoders.vit import ViT
from eagleray.runs.assemble import build_method
from eagleray_methods.moco_v3 import MoCoV3
from method_cases import INFO, NOW, batch_of, finished_run, small

SMALL = ["method.hidden=16"]
ON_A_VIT = ["method=moco_v3", *SMALL, "encoder=vit_tiny", "encoder.depth=1", "encoder.dim=32"]


def on_a_vit(*more: str) -> MoCoV3:
    method = build_method(load_run(None, [*ON_A_VIT, *more]), INFO).double()
    assert isinstance(method, MoCoV3)
    return method.train()


def test_moco_v3_is_both_directions_scaled_by_two_temperatures():
    method = small("moco_v3", "method.temperature=0.3").train()
    batch = batch_of(method)
    loss = method(batch, NOW).loss
    expected = torch.zeros((), dtype=torch.float64)
    for seen, other in ((0, 1), (1, 0)):
        queries = F.normalize(method.predictor(method.projector(method.encoder(batch.views[seen]))), dim=1)
        keys = F.normalize(method.teacher(batch.views[other]), dim=1)
        for i in range(8):
            shares = (keys @ queries[i] / 0.3).exp()
            expected = expected - 2 * 0.3 * (shares[i] / shares.sum()).log() / 8
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())


def test_the_teachers_momentum_goes_to_one_by_half_a_cosine():
    method = small("moco_v3", "method.momentum=0.99").train()
    before = [p.clone() for p in method.teacher.parameters()]
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    with torch.no_grad():
        for p in student:
            p.add_(1.0)
    method.after_step(Progress(step=5, steps=10, epoch=0, epochs=1))
    for after, old, online in zip(method.teacher.parameters(), before, student, strict=True):
        torch.testing.assert_close(after.data, 0.995 * old + 0.005 * online.data)


def test_a_vit_keeps_its_random_patch_projection():
    method = on_a_vit()
    assert isinstance(method.encoder, ViT)
    projection = method.encoder.vit.patch_embed.proj
    method(batch_of(method), NOW).loss.backward()
    without = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # DistributedDataParallel waits for all of them
    assert [p.grad for p in projection.parameters()] == [None, None]
    # Xavier's bound for the linear layer from a patch's numbers to 32.
    bound = (6 / (projection.weight[0].numel() + 32)) ** 0.5
    assert 0.9 * bound < float(projection.weight.abs().max()) <= bound
    assert torch.equal(projection.bias, torch.zeros_like(projection.bias))
    assert torch.equal(method.teacher[0].vit.patch_embed.proj.weight, projection.weight)
    trained = on_a_vit("method.freeze_patches=false")
    assert isinstance(trained.encoder, ViT)
    assert all(p.requires_grad for p in trained.encoder.vit.patch_embed.proj.parameters())


def test_heads_are_those_of_the_paper_for_a_vit_and_for_a_convolutional_network():
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    vit, convnet = on_a_vit(), small("moco_v3")
    assert [type(layer) for layer in vit.projector] == [*hidden, *hidden, nn.Linear, nn.BatchNorm1d]
    assert [type(layer) for layer in vit.predictor] == [*hidden, nn.Linear, nn.BatchNorm1d]
    assert [type(layer) for layer in convnet.projector] == [*hidden, nn.Linear, nn.BatchNorm1d]
    assert [type(layer) for layer in convnet.predictor] == [*hidden, nn.Linear]
    for head in (vit.projector, vit.predictor, convnet.projector):
        assert head[-1].weight is None  # the last norm neither scales nor shifts
        assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet18", "vit_tiny"])
def test_moco_v3_trains_other_encoders(encoder: str):
    run = load_run(None, ["method=moco_v3", f"encoder={encoder}", *SMALL])
    method = build_method(run, INFO).double().train()
    result = method(batch_of(method), NOW)
    result.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_behind_a_trained_vit_stand_the_heads_of_a_vit(tmp_path: Path):
    run = finished_run(tmp_path / "run", INFO, *ON_A_VIT)
    goes_on = build_method(load_run(None, ["method=moco_v3", *SMALL, "encoder=pretrained", f"encoder.run={run}"]), INFO)
    assert isinstance(goes_on, MoCoV3)
    assert str(goes_on.projector) == str(on_a_vit().projector)
    assert str(goes_on.predictor) == str(on_a_vit().predictor)
    frozen = [name for name, p in goes_on.encoder.named_parameters() if not p.requires_grad]
    assert [name.rpartition("patch_embed.")[2] for name in frozen] == ["proj.weight", "proj.bias"]
