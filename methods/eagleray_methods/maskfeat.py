"""MaskFeat: predict the histograms of oriented gradients of hidden patches.

Wei, Fan, Xie, Wu, Yuille, Feichtenhofer 2021, https://arxiv.org/abs/2112.09133
A patch has two by two cells, at the paper's 16 pixels of 8 each. Weight decay acts on positions and tokens too, as in
the authors' code, in whose experience the loss stops falling otherwise.
Differs from the paper: the Gaussian window is that of mmselfsup's copy of the authors' layer; the authors' own
configuration for images leaves it out (`window=false`). Hidden rectangles are filled up by single patches. Initial
weights are timm's. Under the small recipe the rate is higher, the warm-up shorter, and the gradient is not clipped. The
features are meant for fine-tuning.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.hidden_patches import count_hidden, draw_blocks, encode_rest
from eagleray.blocks.hog import BINS, histograms, lines
from eagleray.blocks.losses import precise
from eagleray.blocks.masking import filled, patchify, put, take, unpatchify
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import Choice, Uniform
from eagleray.contracts.recipe import SMALL_VIT, Recipe, Recipes


class MaskFeat(Method):
    """Masked images: the edges of hidden patches are predicted, as histograms of oriented gradients."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        mask_ratio: Annotated[
            float, Uniform(0.2, 0.7), Field(gt=0, lt=1, description="share of the patches hidden")
        ] = 0.4
        cell: Annotated[
            int | None,
            Choice(2, 4, 8),
            Field(
                ge=1,
                description="side of a histogram's cell in pixels; null: half a patch, or a whole one if it is odd",
            ),
        ] = None
        window: Annotated[
            bool, Field(description="gradients count more the nearer they are to the middle of two by two cells")
        ] = True

    config: Config
    needs = frozenset({"tokens"})
    metrics: ClassVar[dict[str, Metric]] = {
        "cosine": Metric("cosine of the predicted and the true histograms of hidden patches", "higher")
    }
    recipes = Recipes(
        paper=Recipe(lr=2e-4, weight_decay=0.05, warmup_epochs=30, clip=0.02),
        small=SMALL_VIT,
    )

    def __init__(self, encoder: TokenEncoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.encoder: TokenEncoder = encoder
        size = encoder.patch_size
        self.cell = config.cell or (size if size % 2 else size // 2)
        if size % self.cell:
            fitting = ", ".join(str(cell) for cell in range(1, size + 1) if size % cell == 0)
            raise ConfigError(f"method.cell={self.cell} does not divide the patches' {size} pixels: take {fitting}")
        self.hidden = count_hidden(config.mask_ratio, encoder.grid**2)
        # A matrix, so that it decays.
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, encoder.dim), std=0.02))
        self.head = nn.Linear(encoder.dim, (size // self.cell) ** 2 * data.channels * BINS)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(0.5, 1.0), flip=0.5, interpolation="bicubic"),)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return (ParameterGroup(self, decay="matrices"),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images, grid = batch.views[0], self.encoder.grid
        places = draw_blocks(len(images), grid, self.hidden, self.rng(progress.step))
        places = places.to(images.device, non_blocking=True)  # [N, K]
        tokens, predicted = self._predict(images, places)
        target = take(self._targets(images), places)
        cosine = nn.functional.cosine_similarity(precise(predicted.detach()), target, dim=-1).mean()
        return StepResult(squared_error(predicted, target), [tokens[:, 1:].detach().mean(1)], {"cosine": cosine})

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Hide patches, and draw the edges of all and those that are predicted of the hidden ones."""
        places = draw_blocks(len(images), self.encoder.grid, self.hidden, self.rng(0)).to(images.device)
        edges, predicted = self._targets(images), self._predict(images, places)[1]
        drawn = {"edges": edges, "predicted edges": put(torch.zeros_like(edges), places, predicted)}
        per_patch = self.encoder.patch_size // self.cell
        return {
            "seen": filled(images, places, self.encoder.patch_size),
            **{title: lines(unpatchify(each, per_patch)) for title, each in drawn.items()},
        }

    def _predict(self, images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images without their patches at `places`, and predict the histograms of these.

        [N, C, S, S], [N, K] -> tokens [N, 1 + L, dim] and histograms [N, K, cells * C * 9].
        """
        tokens = encode_rest(self.encoder, images, places, self.mask_token[0])
        return tokens, self.head(take(tokens[:, 1:], places))

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        """Return all patches' histograms, [N, L, cells * C * 9]."""
        return patchify(histograms(images, self.cell, window=self.config.window), self.encoder.patch_size // self.cell)


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error of hidden patches' histograms.

    It is averaged over patches and bins, as by the authors.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        return (precise(predicted) - target).square().mean()
