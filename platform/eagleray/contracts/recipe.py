"""How a method is trained. Imports no torch.

Optimizer, learning rate and its schedule, decay, clipping.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from eagleray.contracts.ranges import LogUniform


class Recipe(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One way to train a method.

    The `optimizer` section of a run file overrides single keys.
    """

    name: Annotated[
        Literal["adamw", "sgd", "lars", "muon"],
        Field(description="optimizer; another than the recipe's needs its lr beside it; LARS and Muon are timm's"),
    ] = "adamw"
    lr: Annotated[
        float,
        LogUniform(1e-4, 1e-1),
        Field(gt=0, description="peak learning rate for a batch of 256 images, before lr_scaling"),
    ] = 1e-3
    lr_scaling: Annotated[
        Literal["linear", "sqrt", "none"], Field(description="how lr grows with batch_size / 256")
    ] = "linear"
    weight_decay: Annotated[
        float,
        LogUniform(1e-6, 1e-1),
        Field(ge=0, description="decay of weights; never of biases, norms, position embeddings, class tokens"),
    ] = 1e-4
    final_weight_decay: Annotated[
        float | None, Field(ge=0, description="decay at the end, reached by cosine; null: constant")
    ] = None
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum; of adamw the first beta")] = 0.9
    nesterov: Annotated[bool, Field(description="Nesterov's form of momentum, for sgd; muon always has it")] = False
    beta2: Annotated[float, Field(gt=0, lt=1, description="second beta of adamw, and of muon's other parameters")] = (
        0.999
    )
    warmup_epochs: Annotated[float, Field(ge=0, description="epochs of linear warm-up from 0")] = 0.0
    final_lr: Annotated[float, Field(ge=0, le=1, description="part of the peak that cosine decay ends at")] = 0.0
    drops: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        Field(description="parts of the training after which lr is multiplied by drop_factor; empty: cosine decay"),
    ] = ()
    drop_factor: Annotated[float, Field(gt=0, lt=1, description="factor on lr at each of drops")] = 0.1
    clip: Annotated[float | None, Field(gt=0, description="largest norm of the gradient; null: not clipped")] = None

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if self.drops and self.final_lr:
            raise ValueError("drops and final_lr exclude each other: one ends in steps, the other in a cosine")
        return self

    def peak_lr(self, batch_size: int) -> float:
        """Return the peak learning rate for a batch size.

        It is the rate after warm-up; the batch is that of all workers.

        Source of the linear rule: Goyal et al. 2017, arXiv 1706.02677.
        """
        ratio = batch_size / 256
        return self.lr * {"linear": ratio, "sqrt": ratio**0.5, "none": 1.0}[self.lr_scaling]


# Of eight methods tried, seven learn more with Muon than with AdamW in ten epochs (docs/results.md).
SMALL = Recipe(name="muon", lr=5e-3, lr_scaling="sqrt", weight_decay=1e-4, warmup_epochs=0.5)
SMALL_VIT = SMALL.model_copy(update={"lr": 1e-2, "weight_decay": 0.05, "warmup_epochs": 1.0, "clip": 3.0})

# What semi-supervised methods are compared with (TorchSSL, 2110.08263; USB, 2208.07204), and its updates. Half a cosine
# to .195 of the peak ends where their 7/16 of a cosine does.
SEMI_SUPERVISED = Recipe(name="sgd", lr=0.03, nesterov=True, lr_scaling="none", weight_decay=5e-4, final_lr=0.195)
SEMI_SUPERVISED_STEPS = 2**20
SEMI_SUPERVISED_SMALL = SMALL.model_copy(update={"weight_decay": 1e-3})


class Recipes(BaseModel, frozen=True, extra="forbid"):
    """A method's two recipes: `recipe=paper` and `recipe=small`."""

    paper: Recipe  # as its authors train it; the method's Config holds their settings
    paper_steps: int | None = None  # updates of the paper's training: the default of `steps` with recipe=paper
    small: Recipe = SMALL  # on some 10,000 images of 32 pixels, for tens of epochs
    small_settings: dict[str, Any] = {}  # Config settings that differ there
