"""MSN: a masked view finds the prototypes of a whole one.

Assran, Caron, Misra, Bojanowski, Bordes, Vincent, Joulin, Rabbat, Ballas 2022, https://arxiv.org/abs/2204.07141
The defaults are those of the authors' ViT-S/16. The first crop is the teacher's; the second, whose patches are partly
left out, and the small ones are predictions. The mean prediction is that of all workers' images. The teacher is
evaluated; its features are pooled by `encoder.pool`, the paper's are the class token.
Differs from the paper: each image loses patches of its own, where the code leaves out the same ones in all images of a
worker. Weight decay excludes position embeddings and class tokens. Learning rate, weight decay and momentum arrive at
their ends with the training, where the code stops at four fifths of the way; warm-up starts at 0, the authors' at a
fifth of the peak. The gradient is clipped together with that of the prototypes. Images up to 64 pixels are not blurred,
and their small crops cover at least a tenth of the image. The small recipe has two small crops, fewer prototypes, a
narrower head and a faster teacher.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View, multi_crop, simclr_view
from eagleray.blocks.distributed import all_reduce_mean, all_reduce_sum, own_rows, world_size
from eagleray.blocks.losses import precise
from eagleray.blocks.masking import only, take
from eagleray.blocks.networks import PrototypeHead, ema_update, encode_crops, frozen_copy, small_crop_size
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import SMALL_VIT, Recipe, Recipes


class MSN(Method):
    """Masked images: a view without some of its patches finds the same prototypes as another, whole view."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        mask_ratio: Annotated[
            float, Uniform(0.0, 0.7), Field(ge=0, lt=1, description="share of the patches left out")
        ] = 0.15
        prototypes: Annotated[int, IntRange(64, 4096), Field(ge=2, description="that views are compared with")] = 1024
        temperature: Annotated[
            float, LogUniform(0.05, 0.5), Field(gt=0, description="of the cosines with prototypes")
        ] = 0.1
        sharpening: Annotated[
            float, Uniform(0.1, 0.5), Field(ge=0.1, le=1, description="temperature of the teacher's probabilities")
        ] = 0.25
        iterations: Annotated[
            int, Field(ge=0, description="of Sinkhorn and Knopp, which fill prototypes equally; 0: none")
        ] = 3
        entropy_weight: Annotated[
            float, LogUniform(0.1, 10), Field(ge=0, description="of the mean prediction's entropy, which is maximised")
        ] = 1.0
        momentum: Annotated[
            float, Uniform(0.9, 0.999), Field(ge=0, le=1, description="of the teacher at the start; at the end it is 1")
        ] = 0.996
        hidden: Annotated[int, IntRange(128, 4096), Field(ge=1, description="width of the head's hidden layers")] = 2048
        bottleneck: Annotated[
            int, IntRange(32, 512), Field(ge=2, description="width of the vectors compared with prototypes")
        ] = 256
        local_crops: Annotated[int, IntRange(0, 8), Field(ge=0, description="small crops, next to the two large")] = 10
        local_size: Annotated[
            int | None, Field(ge=1, description="their side in pixels; null: 3/7 of the image's, as 96 of 224")
        ] = None
        crop_split: Annotated[
            float,
            Uniform(0.1, 0.6),
            Field(ge=0.1, lt=1, description="part of the image that large crops cover at least, small ones at most"),
        ] = 0.3

    config: Config
    needs = frozenset({"tokens"})
    metrics: ClassVar[dict[str, Metric]] = {
        "cross_entropy": Metric("of the teacher's probabilities and the predictions", no_goal=TERM),
        "unevenness": Metric("ln(prototypes) less the entropy of the mean prediction: 0 if all are used", no_goal=TERM),
    }
    recipes = Recipes(
        paper=Recipe(
            lr=1e-3, lr_scaling="none", weight_decay=0.04, final_weight_decay=0.4, warmup_epochs=15, final_lr=0.001,
            clip=3.0,
        ),
        small=SMALL_VIT,
        small_settings={
            "prototypes": 128,
            "momentum": 0.99,
            "hidden": 512,
            "bottleneck": 64,
            "local_crops": 2,
        },
    )  # fmt: skip

    def __init__(self, encoder: TokenEncoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.encoder: TokenEncoder = encoder
        self.local_size = small_crop_size(config.local_size, encoder, data)
        self.kept = max(1, int(encoder.grid**2 * (1 - config.mask_ratio)))
        widths = [encoder.dim, config.hidden, config.hidden, config.bottleneck]
        self.head = PrototypeHead(widths, config.prototypes, norm=True)
        self.teacher, self.teacher_layers = frozen_copy(encoder), frozen_copy(self.head.layers)

    @property
    def views(self) -> tuple[View, ...]:
        size, config = self.data.image_size, self.config
        view = replace(simclr_view(size), jitter=0.5)
        return multi_crop((view, view), size, config.local_crops, self.local_size, config.crop_split)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return (ParameterGroup(self.head.prototypes, decay="nothing"),)

    @property
    def backbone(self) -> nn.Module:
        return self.teacher

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        config, (whole, masked, *small) = self.config, batch.views
        kept = self._kept(progress.step, len(masked)).to(masked.device, non_blocking=True)
        tokens = self.encoder.tokens(take(self.encoder.patches(masked), kept))
        classes = [tokens[:, 0], *([encode_crops(self._class_token, small)] if small else [])]
        # Batch norm sees large and small crops separately, as in the authors' code.
        embedded = torch.cat([self.head.embed(each) for each in classes])  # [V * n, bottleneck]
        logits = self.head.compare(embedded) / config.temperature
        with torch.no_grad():
            teacher = self.teacher_layers(self.teacher.tokens(self.teacher.patches(whole))[:, 0])
            cosines = self.head.compare(nn.functional.normalize(precise(teacher), dim=-1))
            targets = sharpened(cosines / config.temperature, config.sharpening, config.iterations)
        cross_entropy, unevenness = msn_terms(logits.unflatten(0, (-1, len(whole))), targets)
        loss = cross_entropy + config.entropy_weight * unevenness
        metrics: dict[str, Tensor | float] = {
            "cross_entropy": cross_entropy.detach(),
            "unevenness": unevenness.detach(),
        }
        return StepResult(loss, list(embedded.detach().split(len(whole))), metrics)

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Leave out patches, as of the view that the student sees."""
        kept = self._kept(0, len(images)).to(images.device)
        return {"seen": only(images, kept, self.encoder.patch_size)}

    def _class_token(self, images: Tensor) -> Tensor:
        return self.encoder.tokens(self.encoder.patches(images))[:, 0]

    def _kept(self, step: int, count: int) -> Tensor:
        """Draw the patches that stay, [n, K], for the images of all workers."""
        noise = torch.rand(world_size() * count, self.encoder.grid**2, generator=self.rng(step))
        return own_rows(noise).argsort(1)[:, : self.kept]

    def after_step(self, progress: Progress) -> None:
        momentum = self.config.momentum + (1 - self.config.momentum) * progress.fraction
        ema_update(self.teacher, self.encoder, momentum)
        ema_update(self.teacher_layers, self.head.layers, momentum)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.teacher(images)


def msn_terms(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss's terms (equation 1).

    The cross-entropy H(targets, p) of all views' predictions p = softmax(logits), and ln(K) - H(mean p), where the mean
    is over views and the images of all workers.

    Args:
        logits: [V, n, K].
        targets: the teacher's probabilities, [n, K].
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_p = precise(logits).log_softmax(-1)
        cross_entropy = -(targets * log_p).sum(-1).mean()
        mean = all_reduce_mean(log_p.exp().mean((0, 1)))
        entropy = -(mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()
        return cross_entropy, math.log(len(mean)) - entropy


@torch.no_grad()
def sharpened(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """Return the teacher's targets: sharpened, then with equally full prototypes.

    softmax(logits)^(1/T), normalised, and after it Sinkhorn's and Knopp's iterations over the images of all workers.
    [n, K] -> rows that sum to 1, float32 even inside a bf16 autocast (float64 for float64 logits).
    """
    with torch.autocast(logits.device.type, enabled=False):
        # The bound keeps every prototype's sum above 0 in float32, and matters to no image.
        targets = (precise(logits) / temperature).log_softmax(-1).clamp(min=-80).exp()
        for _ in range(iterations):
            targets = targets / all_reduce_sum(targets.sum(0))
            targets = targets / targets.sum(1, keepdim=True)
        return targets
