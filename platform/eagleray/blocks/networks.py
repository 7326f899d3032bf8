"""Networks that several methods use: heads, teachers, queues, multi-crop."""

import copy
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagleray.blocks.distributed import all_reduce_mean, gather
from eagleray.blocks.losses import normalised
from eagleray.contracts.batch import DataInfo
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError

M = TypeVar("M", bound=nn.Module)


def mlp(
    widths: Sequence[int],
    *,
    norm: bool = True,
    last_norm: bool = False,
    last_affine: bool = True,
    last_bias: bool = True,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Build an MLP with batch norms and activations.

    `mlp([512, 2048, 128])` has one hidden layer.

    Args:
        widths: of the input, the hidden layers and the output.
        norm: whether there are batch norms between the layers.
        last_norm: whether a batch norm follows the last layer (SimCLR's head, in its authors' code).
        last_affine: whether that norm scales and shifts (SimSiam's and MoCo v3's does not).
        last_bias: whether the last layer has a bias; it has none if a norm follows.
        activation: between the layers.
    """
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths[:-1]):
        layers.append(nn.Linear(inner, outer, bias=not norm))  # a norm has a bias of its own
        layers += [nn.BatchNorm1d(outer)] if norm else []
        layers.append(activation())
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias and not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_affine))
    return nn.Sequential(*layers)


def frozen_copy(module: M) -> M:
    """Return a copy without gradients: a teacher for `ema_update`."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a teacher's parameters towards the student's.

    teacher <- momentum * teacher + (1 - momentum) * student. Buffers stay the teacher's.
    """
    old: list[Tensor] = list(teacher.parameters())
    new: list[Tensor] = list(student.parameters())
    torch._foreach_lerp_(old, new, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]


@torch.no_grad()
def copy_buffers(teacher: nn.Module, student: nn.Module) -> None:
    """Copy the student's buffers to its teacher.

    These are running statistics, for a teacher that is used in evaluation mode.
    """
    for target, source in zip(teacher.buffers(), student.buffers(), strict=True):
        target.copy_(source)


def sincos_positions(grid: int, dim: int) -> Tensor:
    """Return fixed sine-cosine positions of patches, [L, dim].

    There are grid x grid patches, row by row; 4 must divide `dim`. The first half encodes the column, the second half
    the row, at wavelengths from 2 pi to 20,000 pi patches (MAE, 2111.06377, and MoCo v3, 2104.02057, after "Attention
    Is All You Need", 1706.03762).
    """
    rates = 10_000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid)[:, None] * rates  # [grid, dim / 4]
    line = torch.cat([angles.sin(), angles.cos()], 1)  # [grid, dim / 2]
    return torch.cat([line.repeat(grid, 1), line.repeat_interleave(grid, 0)], 1).float()


class Queue(nn.Module):
    """The newest embeddings of all workers, [size, dim].

    The oldest are overwritten first; it is saved in checkpoints. It starts with random directions, as MoCo's does
    (1911.05722, algorithm 1): `filled` is the number of real rows.

    Args:
        size: number of rows; a multiple of the rows that one `push` adds over all workers together.
        dim: width of a row.
    """

    rows: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("rows", nn.functional.normalize(torch.randn(size, dim), dim=1))
        self.count = 0  # rows pushed so far; not a tensor: reading it from a GPU in every step would wait

    @property
    def filled(self) -> int:
        """Rows that have been pushed and not overwritten yet."""
        return min(self.count, len(self.rows))

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.count)

    def set_extra_state(self, state: Tensor) -> None:
        self.count = int(state)

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Add all workers' rows, [n, dim] on each.

        In the order of their ranks.
        """
        rows = gather(rows.detach()).to(self.rows.dtype)
        start = self.count % len(self.rows)
        self.rows[start : start + len(rows)] = rows
        self.count += len(rows)


def check_queue(size: int, batch_size: int) -> None:
    """Check that whole batches can fill a queue.

    The queue has `size` rows, and each batch overwrites the oldest.

    Raises:
        ConfigError: it cannot; names the nearest size that can.
    """
    if size < batch_size or size % batch_size:
        near = max(1, round(size / batch_size)) * batch_size
        raise ConfigError(
            f"method.queue={size} must hold whole batches of batch_size={batch_size}: "
            f"take {near}, or another multiple of {batch_size}"
        )


class PrototypeHead(nn.Module):
    """DINO's head: cosines with learnt prototypes.

    An MLP, then the cosines (2104.14294, section 3.1). [n, dim] -> [n, prototypes]. This is the paper's weight
    normalisation with its norms fixed at 1. It is computed in float32 at least: bf16's three digits are too few for a
    teacher's temperature of 0.04.

    Args:
        widths: of the features, the hidden layers and the bottleneck.
        prototypes: number of prototypes.
        norm: batch norm in the hidden layers; the paper's ViTs have none.
        last_norm: batch norm after the bottleneck.
    """

    def __init__(self, widths: Sequence[int], prototypes: int, *, norm: bool = False, last_norm: bool = False):
        super().__init__()
        self.layers = mlp(widths, norm=norm, last_norm=last_norm, activation=nn.GELU)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(widths[-1], prototypes, bias=False)

    def embed(self, features: Tensor) -> Tensor:
        """Embed for comparison with prototypes, at length 1.

        [..., dim] -> [..., bottleneck].
        """
        x = self.layers(features)
        with torch.autocast(x.device.type, enabled=False):
            return normalised(x)

    def compare(self, embedded: Tensor) -> Tensor:
        """Compute cosines with all prototypes.

        [..., bottleneck] -> [..., prototypes].
        """
        with torch.autocast(embedded.device.type, enabled=False):
            return F.linear(embedded, F.normalize(self.prototypes.weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        return self.compare(self.embed(features))


class Centre(nn.Module):
    """Moving mean of a teacher's logits.

    It prevents collapse to one prototype (2104.14294, equation 4).

    Args:
        width: prototypes.
        momentum: of the mean.
    """

    mean: Tensor

    def __init__(self, width: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))

    @torch.no_grad()
    def targets(self, logits: Tensor, temperature: float) -> Tensor:
        """Return probabilities of the centred logits, [..., width].

        Call it before `update` with the same logits.
        """
        return ((logits - self.mean) / temperature).softmax(-1)

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Update the mean with all workers' logits, [n, width]."""
        self.mean.lerp_(all_reduce_mean(logits.mean(0)).to(self.mean.dtype), 1 - self.momentum)


def encode_crops(encode: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """Encode V crops in their order, [V * n, D].

    Consecutive crops of one size share a forward pass.
    """
    sizes = groupby(views, key=lambda view: view.shape[-1])
    return torch.cat([encode(torch.cat(list(crops))) for _, crops in sizes])


def small_crop_size(asked: int | None, encoder: Encoder, data: DataInfo) -> int:
    """Return the side of multi-crop's small crops.

    It is `method.local_size`, or by default 3/7 of the image (96 of 224). The default is rounded up to whole patches,
    or to a multiple of 4 pixels for an encoder without patches.

    Raises:
        ConfigError: the crops are larger than the image, not whole patches, or too small for the encoder.
    """
    patch = encoder.patch_size
    unit = patch if patch > 1 else 4
    default = min(data.image_size, -(-data.image_size * 3 // (7 * unit)) * unit)
    size = default if asked is None else asked
    if size > data.image_size:
        raise ConfigError(
            f"method.local_size={size} is larger than the images of {data.image_size} pixels: take {default}"
        )
    if size % patch:
        raise ConfigError(f"method.local_size={size} must be a multiple of the patches' {patch} pixels: take {default}")
    if not _takes(encoder, torch.zeros(1, data.channels, size, size)):
        raise ConfigError(
            f"method.local_size={size} is too small for this encoder, whose layers reduce such an image to nothing: "
            f"take {data.image_size // 2}"
        )
    return size


@torch.no_grad()
def _takes(encoder: Encoder, images: Tensor) -> bool:
    training = encoder.training
    try:
        encoder.eval()(images)
    except RuntimeError:  # torch's error for a kernel or a pooling that is larger than its input
        return False
    finally:
        encoder.train(training)
    return True
