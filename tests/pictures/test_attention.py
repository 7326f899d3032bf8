"""Attention as the network computes it: formed by hand from queries and keys, it is the same."""

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import Attention

from eagleray.pictures.catalogue import Absent
from eagleray.pictures.of_runs.attention import class_attention, draw
from pictures.subjects import run_on, trained

DIGITS = ["data=digits", "data.limit=60", "encoder.patch_size=2", "encoder.depth=2"]


def untrained(directory: Path, *settings: str) -> Path:
    return run_on(directory, *settings, width=None)


@pytest.mark.parametrize(
    ("encoder", "registers"), [("vit_tiny", 0), ("vit_medium_patch16_reg4_gap_256", 4)], ids=["plain", "registers"]
)
def test_it_is_the_softmax_of_the_last_block_and_each_head_sums_to_one(tmp_path: Path, encoder: str, registers: int):
    run = trained(tmp_path / "run", untrained, *DIGITS, f"encoder={encoder}")
    method, inputs = run.built.method, run.inputs([0, 5, 9])
    found = class_attention(method, inputs)
    given: list[torch.Tensor] = []
    layer = [each for each in method.encoder.modules() if isinstance(each, Attention)][-1]
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    before = method.encode(inputs)
    hook.remove()
    count, tokens, _ = given[0].shape
    queries, keys, _ = layer.qkv(given[0]).reshape(count, tokens, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    wanted = (queries @ keys.transpose(-2, -1) * layer.scale).softmax(-1)[:, :, 0]
    assert wanted.shape == (3, layer.num_heads, 1 + registers + 16)
    torch.testing.assert_close(found.flatten(2), wanted[:, :, 1 + registers :])
    others = wanted[:, :, : 1 + registers].sum(-1)  # what goes to the class token and the registers
    torch.testing.assert_close(found.sum((2, 3)) + others, torch.ones(3, layer.num_heads))
    torch.testing.assert_close(method.encode(inputs), before)  # the network is as it was
    assert layer.fused_attn


def test_rows_have_an_image_the_mean_and_the_heads(tmp_path: Path):
    run = trained(tmp_path / "run", untrained, *DIGITS, "encoder=vit_tiny")
    axes = draw(run).axes[0]
    heads = class_attention(run.built.method, run.inputs(run.samples(7)))
    assert len(axes.images) == 7 * (2 + heads.shape[1])
    mean = heads[0].mean(0).numpy()
    wanted = (mean - mean.min()) / (mean.max() - mean.min())
    torch.testing.assert_close(torch.tensor(axes.images[1].get_array().filled()), torch.tensor(wanted))
    assert f"{17 * mean.min():.1f} to {17 * mean.max():.1f}" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["encoder=convnet", "encoder.width=8"], "convnet has no attention: this is a picture of ViTs"),
        (["encoder=mobilevit_xxs", "image_size=32"], "mobilevit_xxs has no class token whose attention could be drawn"),
    ],
    ids=["convnet", "mobilevit"],
)
def test_networks_without_it_are_told_in_a_sentence(tmp_path: Path, settings: list[str], why: str):
    run = trained(tmp_path / "run", untrained, *DIGITS[:2], *settings)
    with pytest.raises(Absent) as absent:
        draw(run)
    assert str(absent.value) == why
