"""VAE: encode images as distributions, from whose samples they are reconstructed.

Variational autoencoder. Kingma, Welling 2013, https://arxiv.org/abs/1312.6114
With `beta` other than 1 it is the beta-VAE (Higgins et al. 2017). The features evaluated are those before the linear
layer of means and variances: these are wider, and shaped less by the prior.
Differs from the paper: the networks are the encoder given and DCGAN's decoder, not perceptrons; pixels have one fixed
deviation around their reconstruction, the paper's a learnt one each; the constant of that density is left out of the
loss. Both recipes are ours: AdamW and Muon, the paper's is Adagrad.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.decoders import Decoder
from eagleray.blocks.distributed import mean_and_variance, own_rows, world_size
from eagleray.blocks.losses import precise, squared_error
from eagleray.contracts.batch import Batch, DataInfo, Progress, StepResult
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.method import Method
from eagleray.contracts.metric import TERM, Metric
from eagleray.contracts.ranges import Choice, IntRange, LogUniform
from eagleray.contracts.recipe import Recipe, Recipes

ACTIVE = 0.01  # variance of a latent's mean over images above which it is active (Burda et al. 2015, 1509.00519)


class VAE(Method):
    """Generative: a variational autoencoder, whose latent variables follow a Gaussian prior."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        latent: Annotated[int, IntRange(8, 256), Field(ge=1, description="number of latent variables")] = 64
        beta: Annotated[float, LogUniform(0.1, 10.0), Field(ge=0, description="weight of the divergence")] = 1.0
        deviation: Annotated[
            float,
            LogUniform(0.1, 1.0),
            Field(ge=0.01, description="of pixels around their reconstruction, as a part of the channel's own"),
        ] = 0.3
        decoder_width: Annotated[
            int, Choice(16, 32, 64, 128), Field(ge=1, description="channels of the decoder's last map but one")
        ] = 128

    config: Config
    has_error = True
    metrics: ClassVar[dict[str, Metric]] = {
        "reconstruction": Metric("mean squared error of the normalised pixels", "lower", no_goal=TERM),
        "kl": Metric("divergence of the latent variables from their prior, in nats an image", no_goal=TERM),
        "active_units": Metric(
            "latent variables whose mean varies between images, by a variance above 0.01; 0: posterior collapse",
            no_goal="it is at most method.latent",
        ),
    }
    recipes = Recipes(paper=Recipe(lr=1e-3, lr_scaling="none", weight_decay=0.0), small_settings={"decoder_width": 32})

    def __init__(self, encoder: Encoder, config: Config, data: DataInfo):
        super().__init__(encoder, config, data)
        self.posterior = nn.Linear(encoder.dim, 2 * config.latent)
        self.decoder = Decoder(config.latent, data, config.decoder_width)

    @property
    def views(self) -> tuple[View, ...]:
        return (View(),)

    def forward(self, batch: Batch, progress: Progress) -> StepResult:
        images = batch.views[0]
        features = self.encoder(images)
        mean, log_variance = precise(self.posterior(features)).chunk(2, 1)  # each [N, latent]
        noise = self._drawn(len(mean), progress.step).to(images.device, non_blocking=True)
        reconstructed = self.decoder(mean + (log_variance / 2).exp() * noise)
        divergence = kl_from_prior(mean, log_variance).mean()
        loss = negative_log_density(images, reconstructed, self.config.deviation).mean() + self.config.beta * divergence
        metrics = {
            "reconstruction": (reconstructed.detach() - images).square().mean(),
            "kl": divergence.detach(),
            "active_units": (mean_and_variance(mean.detach())[1] > ACTIVE).sum().float(),
        }
        return StepResult(loss, [features.detach()], metrics)

    @torch.no_grad()
    def error(self, images: Tensor) -> Tensor:
        """Return the squared error of what the means of an image's latent variables are decoded to."""
        mean = precise(self.posterior(self.encoder(images))).chunk(2, 1)[0]
        return squared_error(images, self.decoder(mean))

    @torch.no_grad()
    def picture(self, images: Tensor) -> Mapping[str, Tensor]:
        """Reconstruct images from the means of their latent variables, and generate others from the prior."""
        mean = precise(self.posterior(self.encoder(images))).chunk(2, 1)[0]
        drawn = self._drawn(2 * len(images), 0).to(mean)
        return {"reconstructed": self.decoder(mean), "generated": self.decoder(drawn)}

    def _drawn(self, count: int, step: int) -> Tensor:
        """Draw this worker's `count` latent vectors from the prior, [count, latent]."""
        return own_rows(torch.randn(world_size() * count, self.config.latent, generator=self.rng(step)))


def kl_from_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute the divergence of Gaussians from the standard one.

        KL = 1/2 sum over d of (mean_d² + variance_d - 1 - log variance_d)

    Args:
        mean, log_variance: [N, latent].

    Returns:
        [N], in nats.
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2


def negative_log_density(images: Tensor, reconstructed: Tensor, deviation: float) -> Tensor:
    """Compute -log p(image | latent) up to a constant.

        sum over all numbers of the image of (x - reconstructed x)² / (2 deviation²)

    It is a SUM: with a mean, the divergence would be thousands of times too strong and the posterior collapse.

    Args:
        images, reconstructed: [N, C, S, S].
        deviation: of the pixels, the same for all.

    Returns:
        [N], in nats.
    """
    return (images - reconstructed).square().flatten(1).sum(1) / (2 * deviation**2)
