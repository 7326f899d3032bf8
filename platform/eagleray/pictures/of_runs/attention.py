"""Attention of a ViT's class token to the patches, in the last block."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from eagleray.contracts.method import Method
from eagleray.pictures.catalogue import Absent
from eagleray.pictures.drawing import Tile, sheet
from eagleray.pictures.trained import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECK = (
    "By eye: does the class token look at the object, at the background, or at a few patches whatever the image shows? "
    "Bright spots that stay in one place say nothing of the image. Not by eye: what the features use; attention shows "
    "what one block mixes, and where features are the mean of the patches the class token is no part of them."
)
ROWS, HEADS = 7, 6  # images, and heads that are shown


def draw(trained: Trained) -> "Figure":
    places = trained.samples(ROWS)
    inputs = trained.inputs(places)
    attention = class_attention(trained.built.method, inputs).numpy()  # [N, heads, G, G]
    _, heads, grid, _ = attention.shape
    shown = np.linspace(0, heads - 1, min(HEADS, heads)).round().astype(int).tolist()
    about = f"{trained.about('knn', 'linear')}; {grid}x{grid} patches; below each map its range, 1: an even share"
    if getattr(trained.built.method.encoder.config, "pool", "class") == "mean":
        about += "; the features are the mean of the patches (encoder.pool=mean), not the class token"
    rows = []
    for place, image, each in zip(places, trained.visible(inputs), attention, strict=True):
        maps = [each.mean(0), *(each[head] for head in shown)]
        rows.append([Tile(image, trained.class_of(place)), *map(_tile, maps)])
    columns = ["image", "mean", *(f"head {head + 1}" for head in shown)]
    return sheet("Attention of the class token in the last block", about, rows, columns, side=1.25)


def class_attention(method: Method, inputs: Tensor) -> Tensor:
    """Return how the class token attends to the patches, in the last block that `encode` runs.

    [N, C, S, S] -> [N, heads, G, G] for G x G patches. With what goes to itself and to registers each head sums to 1.

    Raises:
        Absent: the network has no attention, no class token, or tokens that are no grid of patches.
    """
    name, layers = method.encoder.name, [each for each in method.modules() if hasattr(each, "fused_attn")]
    with _kept(layers) as kept, torch.no_grad():
        method.encode(inputs)
    if not kept:
        raise Absent(f"{name} has no attention: this is a picture of ViTs")
    layer, attention = next(reversed(kept.items()))
    owner = next(
        (each for each in method.modules() if layer in each.modules() and hasattr(each, "num_prefix_tokens")), None
    )
    if owner is None or not getattr(owner, "has_class_token", getattr(owner, "cls_token", None) is not None):
        raise Absent(f"{name} has no class token whose attention could be drawn")
    rows = attention[:, :, 0, int(owner.num_prefix_tokens) :]  # type: ignore[arg-type]
    grid = math.isqrt(rows.shape[-1])
    if grid * grid != rows.shape[-1]:
        raise Absent(f"the last block of {name} has {rows.shape[-1]} patches, which are no square grid")
    return rows.unflatten(-1, (grid, grid)).float().cpu()


@contextmanager
def _kept(layers: list[Any]) -> Iterator[dict[nn.Module, Tensor]]:
    """Keep the attention [N, heads, T, T] of each layer of timm that runs in the block, the last one at the end.

    The fused kernel never forms it, so it is switched off meanwhile.
    """
    kept: dict[nn.Module, Tensor] = {}
    hooks = []
    for layer in layers:

        def keep(_: nn.Module, given: tuple[Tensor], layer: nn.Module = layer) -> None:
            kept.pop(layer, None)
            kept[layer] = given[0].detach()

        hooks.append(layer.attn_drop.register_forward_pre_hook(keep))
    fused = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield kept
    finally:
        for layer, hook, before in zip(layers, hooks, fused, strict=True):
            hook.remove()
            layer.fused_attn = before


def _tile(attention: np.ndarray) -> Tile:
    """Show a map in all colours, and say below it how far it is from even: 1 is what each token would get."""
    low, high = attention.min(), attention.max()
    tokens = attention.size + 1
    return Tile((attention - low) / max(high - low, 1e-12), f"{tokens * low:.1f} to {tokens * high:.1f}")
