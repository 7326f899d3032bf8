"""Convolutional networks of generative methods: from a vector to an image, and from an image to a verdict.

They are those of DCGAN for images of any side. Source: Radford, Metz, Chintala 2015, Unsupervised Representation
Learning with Deep Convolutional Generative Adversarial Networks, https://arxiv.org/abs/1511.06434
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagleray.blocks.losses import precise
from eagleray.contracts.batch import DataInfo

SLOPE = 0.2  # of a discriminator's rectifiers below 0


class Decoder(nn.Module):
    """Turn vectors into images.

    [N, D] -> [N, C, S, S], normalised by channel as the images of `data` are. The first convolution spreads the vector
    over a square of up to 4 pixels, each further one doubles the side and halves the channels; batch norm and ReLU
    follow all but the last, and tanh the last: no pixel is darker than black or lighter than white.

    Args:
        dim: D.
        data: channels, mean and deviation of the images.
        width: channels of the last map but one; DCGAN's is 128.
        side: S; None: that of the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, data: DataInfo, width: int, side: int | None = None):
        super().__init__()
        maps = map_sides(side or data.image_size)
        channels = [dim, *(width * 2**number for number in reversed(range(len(maps) - 1))), data.channels]
        layers: list[nn.Module] = [nn.Unflatten(1, (dim, 1, 1))]
        for (inner, outer), (before, after) in zip(pairwise(channels), pairwise([1, *maps]), strict=True):
            if before == 1:
                layers.append(nn.ConvTranspose2d(inner, outer, after, bias=False))
            else:
                layers.append(nn.ConvTranspose2d(inner, outer, _kernel(after), stride=2, padding=1, bias=False))
            layers += [nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers[:-2])
        self.register_buffer("mean", torch.tensor(data.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data.std).view(-1, 1, 1), persistent=False)
        draw_weights(self)

    def forward(self, vectors: Tensor) -> Tensor:
        return ((precise(self.layers(vectors)).tanh() + 1) / 2 - self.mean) / self.std

    def signed(self, images: Tensor) -> Tensor:
        """Undo the normalisation.

        [N, C, H, W] -> the same with pixels from -1 (black) to 1 (white).
        """
        return (images * self.std + self.mean) * 2 - 1


def discriminator(channels: int, side: int, width: int, outputs: int = 1) -> nn.Sequential:
    """Build DCGAN's discriminator, a decoder's mirror image.

    [N, C, S, S] -> [N, outputs]. Convolutions halve the side and double the channels down to a square of up to 4
    pixels, which the last one covers. Leaky rectifiers follow all but the last, and batch norms all but the first too.

    Args:
        channels: C.
        side: S.
        width: channels of the first map; DCGAN's is 128.
        outputs: numbers for each image, a logit by default.
    """
    layers: list[nn.Module] = []
    maps = map_sides(side)[::-1]
    for number, before in enumerate(maps[:-1]):
        outer = width * 2**number
        layers.append(nn.Conv2d(channels, outer, _kernel(before), stride=2, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outer)] if number else []
        layers.append(nn.LeakyReLU(SLOPE))
        channels = outer
    network = nn.Sequential(*layers, nn.Conv2d(channels, outputs, maps[-1], bias=False), nn.Flatten())
    draw_weights(network)
    return network


def map_sides(side: int) -> list[int]:
    """Return the sides of a decoder's maps.

    From at most 4 pixels to `side`; each is twice the one before, or one pixel less.
    """
    maps = [side]
    while maps[0] > 4:
        maps.insert(0, (maps[0] + 1) // 2)
    return maps


def _kernel(larger: int) -> int:
    """Return the kernel between a side and its half.

    With stride 2 and padding 1, a kernel of 4 doubles a side, one of 3 doubles it less one pixel.
    """
    return 3 if larger % 2 else 4


@torch.no_grad()
def draw_weights(network: nn.Module) -> None:
    """Draw initial weights as DCGAN does.

    Weights from N(0, 0.02), scales of batch norms from N(1, 0.02).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Compute a discriminator's cross-entropy.

        loss = mean of -log D(real) + mean of -log(1 - D(generated)),    D = the logistic function of a logit

    Args:
        real, generated: logits of any shape.

    Returns:
        A scalar, float32 at least.

    Source: Goodfellow et al. 2014, Generative Adversarial Networks, https://arxiv.org/abs/1406.2661
    """
    return F.softplus(-precise(real)).mean() + F.softplus(precise(generated)).mean()


def recognised(real: Tensor, generated: Tensor) -> Tensor:
    """Return the share of images on whose origin a discriminator is right, of logits."""
    return ((real.detach() > 0).float().mean() + (generated.detach() <= 0).float().mean()) / 2
