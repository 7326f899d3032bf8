"""SimMIM: predict the pixels of hidden patches by one linear layer.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu 2021, https://arxiv.org/abs/2111.09886
The paper's recipe is that of the authors' ViT-B: 800 epochs, of which the last 100 at a tenth of the rate.
Differs from the paper: the ViT has absolute positions, where the authors' has shared relative ones, and neither
stochastic depth nor layer scale; its weights start as timm's. Weight decay excludes the mask token, too. The small
recipe ends in a cosine, at a higher rate, and hides single patches. The features are meant for fine-tuning.
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.distributed import own_rows, world_size
from eagleray.blocks.hidden_patches import encode_rest
from eagleray.blocks.losses import precise, squared_error
from eagleray.blocks.masking import filled, patchify, take
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import Choice, Uniform
from eagleray.contracts.recipe import SMALL_VIT, Recipe, Recipes


class SimMIM(Method):
    """Masked images: one linear layer predicts the pixels of hidden squares."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        mask_ratio: Annotated[
            float, Uniform(0.3, 0.8), Field(gt=0, lt=1, description="share of the squares hidden, rounded up")
        ] = 0.6
        mask_unit: Annotated[
            int | None,
            Choice(1, 2, 4),
            Field(
                ge=1,
                description="side of these squares in patches; null: 2, as the paper's 32 pixels, or 1 if there is an "
                "odd number of patches along the image's side",
            ),
        ] = None

    config: Config
    metrics: ClassVar[dict[str, Metric]] = {
        "reconstruction": Metric("mean squared error of the hidden patches' normalised pixels", "lower", no_goal=TERM)
    }
    needs = frozenset({"tokens"})
    recipes = Recipes(
        paper=Recipe(lr=5e-5, weight_decay=0.05, warmup_epochs=10, drops=(0.875,), clip=5.0),
        small=SMALL_VIT,
        small_settings={"mask_unit": 1},
    )

    def __init__(self, encoder: TokenEncoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.encoder: TokenEncoder = encoder
        self.unit = config.mask_unit or (1 if encoder.grid % 2 else 2)
        if encoder.grid % self.unit:
            raise ConfigError(
                f"method.mask_unit={self.unit} does not divide the {encoder.grid} patches along a side: "
                f"take {', '.join(str(unit) for unit in range(1, max(2, encoder.grid)) if encoder.grid % unit == 0)}"
            )
        self.units = (encoder.grid // self.unit) ** 2
        self.hidden = math.ceil(config.mask_ratio * self.units)
        if self.hidden == self.units:
            raise ConfigError(
                f"method.mask_ratio={config.mask_ratio} hides all of {self.units} squares: decrease it, or use smaller "
                "patches with encoder.patch_size"
            )
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(encoder.dim), std=0.02, a=-0.02, b=0.02))
        self.head = nn.Linear(encoder.dim, encoder.patch_size**2 * data.channels)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(crop=(0.67, 1.0), flip=0.5),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        places = self._places(progress.step, len(images)).to(images.device, non_blocking=True)  # [N, K]
        tokens, predicted = self._predict(images, places)
        target = take(patchify(images, self.encoder.patch_size), places)
        metrics = {"reconstruction": squared_error(predicted.detach(), target).mean()}
        return StepResult(absolute_error(predicted, target), [tokens[:, 1:].detach().mean(1)], metrics)

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Hide squares and predict them."""
        places = self._places(0, len(images)).to(images.device)
        predicted = self._predict(images, places)[1]
        size = self.encoder.patch_size
        return {"seen": filled(images, places, size), "reconstructed": filled(images, places, size, predicted)}

    def _predict(self, images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images without their patches at `places`, and predict these.

        [N, C, S, S], [N, K] -> tokens [N, 1 + L, dim] and patches [N, K, pixels].
        """
        tokens = encode_rest(self.encoder, images, places, self.mask_token)
        return tokens, self.head(take(tokens[:, 1:], places))

    def _places(self, step: int, count: int) -> Tensor:
        """Draw this worker's hidden patches, [N, K].

        They are drawn for the images of all workers.
        """
        noise = own_rows(torch.rand(world_size() * count, self.units, generator=self.rng(step)))
        return patches_of(noise.argsort(1)[:, : self.hidden], self.encoder.grid, self.unit)


def patches_of(squares: Tensor, grid: int, unit: int) -> Tensor:
    """Return the patches that squares of unit x unit patches cover.

    [N, K] -> [N, K * unit * unit]; squares and patches are counted row by row, of `grid` patches along a side.
    """
    corners = squares // (grid // unit) * unit * grid + squares % (grid // unit) * unit
    inside = torch.arange(unit)
    return (corners[:, :, None] + (inside[:, None] * grid + inside).flatten()).flatten(1)


def absolute_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute error of hidden pixels (section 3.4).

    loss = ‖predicted - target‖_1 / numbers, with as many numbers as hidden pixels times channels.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        return (precise(predicted) - target).abs().mean()
