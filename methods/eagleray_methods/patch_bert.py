"""Patch BERT: guess the words of hidden patches, as BERT those of a text; words are k-means clusters of patches.

Devlin, Chang, Lee, Toutanova 2018, https://arxiv.org/abs/1810.04805
Words replace the tokens that BEiT (https://arxiv.org/abs/2106.08254) gets from a network trained elsewhere: patches are
normalised and whitened as by Coates, Ng, Lee 2011, and grouped once, those of the first step's images.
Differs from the paper: it is no paper's method. Masks and training are BEiT's, without its stochastic depth, layer
scale and relative positions, and the mask token does not decay. All hidden patches become the mask token; BERT replaces
a tenth by other words and leaves a tenth. A word says nothing of the brightness of a patch. Hidden rectangles are
filled up by single patches. Images up to 64 pixels keep at least a fifth in a crop, since smaller crops lose the
object. The small recipe has fewer words, because a step of small images has fewer patches.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.augment import View
from eagleray.blocks.distributed import all_reduce_mean, broadcast, gather
from eagleray.blocks.hidden_patches import count_hidden, draw_blocks, encode_rest
from eagleray.blocks.kmeans import kmeans, means, nearest
from eagleray.blocks.losses import precise
from eagleray.blocks.masking import filled, patchify, take
from eagleray.blocks.patch_features import normalise_contrast, whiten
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import TokenEncoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.metric import Metric
from eagleray.contracts.ranges import IntRange, Uniform
from eagleray.contracts.recipe import SMALL_VIT, Recipe, Recipes

PATCHES_EACH = 100  # patches per word that k-means groups at most
ITERATIONS = 20  # of k-means
UNEQUAL = "words of other vocabularies are harder or easier to guess"


class PatchBERT(Method):
    """Masked images: the words of hidden patches are guessed, which are clusters of whitened patches."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        mask_ratio: Annotated[
            float, Uniform(0.2, 0.7), Field(gt=0, lt=1, description="share of the patches hidden")
        ] = 0.4
        words: Annotated[int, IntRange(32, 2048), Field(ge=2, description="clusters of patches")] = 512

    config: Config
    needs = frozenset({"tokens"})
    metrics: ClassVar[dict[str, Metric]] = {
        "word_accuracy": Metric("share of hidden patches whose word is guessed right", "higher", no_goal=UNEQUAL),
        "words_used": Metric("effective number of words among hidden patches, exp of their entropy", no_goal=UNEQUAL),
    }
    recipes = Recipes(
        paper=Recipe(lr=1.9e-4, weight_decay=0.05, warmup_epochs=10, final_lr=0.0067, clip=3.0),
        small=SMALL_VIT,
        small_settings={"words": 128},
    )

    def __init__(self, encoder: TokenEncoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.encoder: TokenEncoder = encoder
        self.hidden = count_hidden(config.mask_ratio, encoder.grid**2)
        numbers, patches = encoder.patch_size**2 * data.channels, data.batch_size * encoder.grid**2
        if numbers == 1:
            raise ConfigError(
                "method=patch_bert needs patches of more than one number: take encoder.patch_size=2 or more"
            )
        if config.words > patches:
            raise ConfigError(
                f"method.words={config.words} are more than the {patches} patches of a step, which become words: "
                f"take {max(2, patches // 10)} or fewer, or increase batch_size"
            )
        self.vocabulary = Vocabulary(config.words, numbers)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(encoder.dim), std=0.02, a=-0.02, b=0.02))
        self.head = nn.Linear(encoder.dim, config.words)
        nn.init.trunc_normal_(self.head.weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def views(self) -> tuple[View, ...]:
        smallest = 0.08 if self.data.image_size > 64 else 0.2
        jitter = {"jitter": 1.0, "jitter_scale": (0.4, 0.4, 0.4, 0.0), "jitter_probability": 1.0}
        return (View(crop=(smallest, 1.0), flip=0.5, interpolation="bicubic", **jitter),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        generator = self.rng(progress.step)
        places = draw_blocks(len(images), self.encoder.grid, self.hidden, generator)
        places = places.to(images.device, non_blocking=True)  # [N, K]
        patches = self._patches(images)  # [N, L, numbers]
        if not self.vocabulary.is_fitted:
            self.vocabulary.fit(gather(patches).flatten(0, 1), generator)
        words = self.vocabulary(take(patches, places)).flatten()  # [N * K]
        tokens, logits = self._guess(images, places)
        logits = logits.flatten(0, 1)
        shares = all_reduce_mean(F.one_hot(words, self.config.words).to(patches.dtype).mean(0))
        measured = {
            "word_accuracy": (logits.detach().argmax(1) == words).to(patches.dtype).mean(),
            "words_used": torch.special.entr(shares).sum().exp(),
        }
        return StepResult(word_loss(logits, words), [tokens.detach().mean(1)], measured)

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Hide patches, and show their words and those that are guessed, which have no brightness."""
        size = self.encoder.patch_size
        places = draw_blocks(len(images), self.encoder.grid, self.hidden, self.rng(0)).to(images.device)
        hidden = self.vocabulary.patches(self.vocabulary(take(self._patches(images), places)))
        guessed = self.vocabulary.patches(self._guess(images, places)[1].argmax(-1))
        shown = {"seen": None, "words": hidden, "guessed": guessed}
        return {title: filled(images, places, size, new) for title, new in shown.items()}

    def _guess(self, images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images without their patches at `places`, and guess the words of these.

        [N, C, S, S], [N, K] -> tokens [N, L, dim] and logits [N, K, words].
        """
        tokens = encode_rest(self.encoder, images, places, self.mask_token)[:, 1:]
        return tokens, self.head(take(tokens, places))

    @torch.no_grad()
    def _patches(self, images: Tensor) -> Tensor:
        """Return patches whose contrast is normalised, [N, L, numbers]."""
        mean, std = (precise(images).new_tensor(each).view(-1, 1, 1) for each in (self.data.mean, self.data.std))
        return normalise_contrast(patchify(255 * (images * std + mean), self.encoder.patch_size))


class Vocabulary(nn.Module):
    """Words of patches: the nearest of k-means centroids, after whitening.

    Args:
        words: number of centroids.
        numbers: of a patch.
    """

    mean: Tensor
    whitening: Tensor
    centroids: Tensor

    def __init__(self, words: int, numbers: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("whitening", torch.zeros(numbers, numbers))
        self.register_buffer("centroids", torch.zeros(words, numbers))
        self.is_fitted = False  # not a tensor: reading it from a GPU in every step would wait

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.is_fitted)

    def set_extra_state(self, state: Tensor) -> None:
        self.is_fitted = bool(state)

    @torch.no_grad()
    def fit(self, patches: Tensor, generator: torch.Generator) -> None:
        """Whiten patches and group them, [P, numbers].

        All workers get the first one's words: GPUs may differ in the last digits.
        """
        words = len(self.centroids)
        chosen = torch.randperm(len(patches), generator=generator)[: PATCHES_EACH * words].to(patches.device)
        with torch.autocast(patches.device.type, enabled=False):
            mean, whitening = whiten(patches[chosen])
            points = (patches[chosen] - mean) @ whitening
            centroids = means(points, kmeans(points, words, ITERATIONS, generator), words)
        for buffer, found in ((self.mean, mean), (self.whitening, whitening), (self.centroids, centroids)):
            buffer.copy_(broadcast(found))
        self.is_fitted = True

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        """Return the words of patches, [..., numbers] -> [...] int64."""
        with torch.autocast(patches.device.type, enabled=False):
            points = (patches.to(self.mean.dtype) - self.mean) @ self.whitening
            return nearest(points.flatten(0, -2), self.centroids).unflatten(0, points.shape[:-1])

    @torch.no_grad()
    def patches(self, words: Tensor) -> Tensor:
        """Return the patches whose words these are, of normalised contrast, [...] int64 -> [..., numbers]."""
        return (self.mean + self.centroids @ torch.linalg.pinv(self.whitening))[words]


def word_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Compute the cross-entropy of hidden patches' words.

    loss = -log softmax(logits)[word], averaged over patches, as in BEiT. [M, words], [M] -> scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(precise(logits), words)
