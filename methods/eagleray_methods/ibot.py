"""iBOT: DINO's task, also for hidden patches.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong 2021, https://arxiv.org/abs/2111.07832
The defaults are those of the paper's ViT-S/16. Class token and patches share one head. The teacher is evaluated; its
features are pooled by `encoder.pool`, the paper's are the class token.
Differs from the paper: there is no stochastic depth, and prototypes keep the norm 1, as the authors' do for ViT-B.
Weight decay also excludes position embeddings, class and mask tokens, where the authors' excludes only biases and
vectors. The gradient is clipped as a whole, not parameter by parameter. Images up to 64 pixels are not blurred, and
their small crops cover at least a tenth of the image. Crops are resized by bilinear interpolation, the authors' by
bicubic (`augment.interpolation`). The small recipe has two small crops and fewer prototypes, and is tuned for hundreds
of steps: the teacher moves faster, and the centres faster still, since all images collapse together if a centre lags
behind the teacher. The teacher stays sharp.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View, byol_views, multi_crop
from eagleray.blocks.distributed import rank, world_size
from eagleray.blocks.losses import cross_view_loss
from eagleray.blocks.masking import block_masks
from eagleray.blocks.networks import Centre, PrototypeHead, ema_update, encode_crops, frozen_copy, small_crop_size
from eagleray.blocks.schedules import cosine, ramp
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import Choice, IntRange, LogUniform, Uniform
from eagleray.contracts.recipe import SMALL_VIT, Recipe, Recipes

TRIED = 50  # largest number of blocks tried for a mask; with 8 x 8 patches the last one fits long before


class IBOT(Method):
    """Masked images and distillation: a moving average that sees the whole image gives hidden patches their targets."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        patch_weight: Annotated[float, LogUniform(0.1, 10), Field(ge=0, description="of hidden patches' loss")] = 1.0
        mask_shape: Annotated[
            Literal["block", "random"], Choice("block", "random"), Field(description="hide rectangles, or any patches")
        ] = "block"
        mask_probability: Annotated[
            float, Uniform(0.2, 1.0), Field(gt=0, le=1, description="share of the large crops that are masked at all")
        ] = 0.5
        mask_min: Annotated[
            float, Uniform(0.05, 0.7), Field(ge=0, lt=1, description="smallest hidden part of these crops")
        ] = 0.1
        mask_max: Annotated[
            float,
            Uniform(0.2, 0.8),
            Field(gt=0, lt=1, description="largest hidden part; with random masks, 0.65 to 0.75"),
        ] = 0.5
        prototypes: Annotated[
            int, IntRange(64, 4096), Field(ge=2, description="classes that teacher and student distinguish")
        ] = 8192
        temperature: Annotated[float, LogUniform(0.05, 0.5), Field(gt=0, description="of the student")] = 0.1
        teacher_start: Annotated[
            float, LogUniform(0.02, 0.08), Field(gt=0, description="the teacher's temperature at the start")
        ] = 0.04
        teacher_temperature: Annotated[
            float, LogUniform(0.02, 0.08), Field(gt=0, description="the teacher's temperature after its warm-up")
        ] = 0.07
        teacher_warmup: Annotated[float, Field(ge=0, description="epochs in which this temperature rises")] = 30.0
        momentum: Annotated[
            float, Uniform(0.9, 0.999), Field(ge=0, le=1, description="of the teacher at the start; at the end it is 1")
        ] = 0.996
        centre_momentum: Annotated[
            float, Uniform(0.5, 0.99), Field(ge=0, lt=1, description="of the mean of the teacher's logits")
        ] = 0.9
        frozen_epochs: Annotated[float, Field(ge=0, description="epochs before prototypes start to move")] = 1.0
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
        ] = 0.25

    config: Config
    needs = frozenset({"tokens"})
    metrics: ClassVar[dict[str, Metric]] = {
        "patch_loss": Metric("cross-entropy of hidden patches, before its weight", no_goal=TERM)
    }
    collapsed_loss = 0.0
    recipes = Recipes(
        paper=Recipe(lr=5e-4, weight_decay=0.04, final_weight_decay=0.4, warmup_epochs=10, final_lr=0.0005, clip=3.0),
        small=SMALL_VIT,
        small_settings={
            "prototypes": 1024,
            "teacher_temperature": 0.04,
            "momentum": 0.99,
            "centre_momentum": 0.7,
            "hidden": 512,
            "bottleneck": 64,
            "local_crops": 2,
        },
    )

    def __init__(self, encoder: TokenEncoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.encoder: TokenEncoder = encoder
        self._check_masks(config, encoder.grid**2)
        self.local_size = small_crop_size(config.local_size, encoder, data)
        self.mask_token = nn.Parameter(torch.zeros(encoder.dim))
        widths = [encoder.dim, config.hidden, config.hidden, config.bottleneck]
        self.head = PrototypeHead(widths, config.prototypes)
        self.teacher, self.teacher_head = frozen_copy(self.encoder), frozen_copy(self.head)
        self.centre = Centre(config.prototypes, config.centre_momentum)
        self.patch_centre = Centre(config.prototypes, config.centre_momentum)

    @staticmethod
    def _check_masks(config: Config, patches: int) -> None:
        if config.mask_min > config.mask_max:
            raise ConfigError(f"method.mask_min={config.mask_min} must not exceed method.mask_max={config.mask_max}")
        if config.mask_max * patches < 1:
            raise ConfigError(
                f"method.mask_max={config.mask_max} hides none of {patches} patches: increase it, or use smaller "
                "patches with encoder.patch_size"
            )

    @property
    def views(self) -> tuple[View, ...]:
        size, config = self.data.image_size, self.config
        return multi_crop(byol_views(size), size, config.local_crops, self.local_size, config.crop_split)

    @property
    def backbone(self) -> nn.Module:
        return self.teacher

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        config, count = self.config, len(batch.views[0])
        large, small = torch.cat(batch.views[:2]), batch.views[2:]
        mask = self._masks(progress.step, count)  # [2n, L], on the CPU, where the hidden places are counted
        hidden = mask.flatten().nonzero().squeeze(1)
        share = (mask.double() / mask.sum(1, keepdim=True).clamp(min=1)).flatten()[hidden]  # 1 / hidden of its crop
        share = share.to(large, non_blocking=True)
        hidden, mask = (x.to(large.device, non_blocking=True) for x in (hidden, mask))

        tokens = self.encoder.tokens(self.encoder.patches(large, mask, self.mask_token))
        classes = [tokens[:, 0], *([encode_crops(self._class_token, small)] if small else [])]
        embedded = self.head.embed(torch.cat([*classes, tokens[:, 1:].flatten(0, 1)[hidden]]))
        embedded, patches = embedded.split([len(batch.views) * count, len(hidden)])
        logits = self.head.compare(embedded).unflatten(0, (-1, count))  # [V, n, prototypes]

        sharp = ramp(config.teacher_start, config.teacher_temperature, config.teacher_warmup, progress)
        targets, patch_targets = self._targets(large, hidden, sharp)
        class_loss = cross_view_loss(targets.unflatten(0, (2, count)), logits, config.temperature)
        patch_loss = masked_loss(patch_targets, self.head.compare(patches), share, config.temperature) / len(large)
        loss = class_loss + config.patch_weight * patch_loss
        return StepResult(loss, list(embedded.detach().split(count)), {"patch_loss": patch_loss.detach()})

    def _class_token(self, images: Tensor) -> Tensor:
        return self.encoder.tokens(self.encoder.patches(images))[:, 0]

    @torch.no_grad()
    def _targets(self, large: Tensor, hidden: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute the teacher's targets; update both centres.

        Targets for whole crops and for the hidden patches.
        """
        head = self.teacher_head
        embedded = head.embed(self.teacher.tokens(self.teacher.patches(large)))  # [2n, 1 + L, bottleneck]
        logits = head.compare(embedded[:, 0])
        patch_logits = head.compare(embedded[:, 1:].flatten(0, 1)[hidden])
        targets = self.centre.targets(logits, temperature)
        patch_targets = self.patch_centre.targets(patch_logits, temperature)
        self.centre.update(logits)
        # The centre covers ALL patches; logits are linear, so those of the mean are the mean of all logits.
        self.patch_centre.update(head.compare(embedded[:, 1:].mean((0, 1))[None]))
        return targets, patch_targets

    def _masks(self, step: int, count: int) -> Tensor:
        """Draw the hidden patches of large crops, [2n, L].

        These are the patches of this worker's two large crops of n images. They are drawn for the images of all workers
        from the step alone, so the distribution of images over workers makes no difference.
        """
        config, places = self.config, self.encoder.grid**2
        generator = self.rng(step)
        numbers = torch.empty(2 + max(places, 4 * TRIED), 2, world_size(), count).uniform_(generator=generator)
        numbers = numbers[:, :, rank()].flatten(1)  # [numbers, 2n]
        ratio = config.mask_min + (config.mask_max - config.mask_min) * numbers[0]
        wanted = torch.where(numbers[1] < config.mask_probability, ratio * places, 0)
        if config.mask_shape == "random":
            return numbers[2 : 2 + places].T.argsort(1).argsort(1) < wanted.floor()[:, None]
        return block_masks(wanted, self.encoder.grid, numbers[2 : 2 + 4 * TRIED].unflatten(0, (TRIED, 4)))

    def before_step(self, progress: Progress) -> None:
        if progress.epochs_done < self.config.frozen_epochs:
            self.head.prototypes.weight.grad = None

    def after_step(self, progress: Progress) -> None:
        momentum = cosine(self.config.momentum, 1.0, progress.fraction)
        ema_update(self.teacher, self.encoder, momentum)
        ema_update(self.teacher_head, self.head, momentum)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.teacher(images)


def masked_loss(targets: Tensor, logits: Tensor, share: Tensor, temperature: float) -> Tensor:
    """Compute the hidden patches' cross-entropy (equation 2).

    A sum with the weight of each patch.

    Args:
        targets: the teacher's probabilities, [M, K].
        logits: the student's, [M, K].
        share: 1 / (number of hidden patches in the same crop), [M].
        temperature: of the student.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return -((targets * (logits / temperature).log_softmax(-1)).sum(-1) * share).sum()
