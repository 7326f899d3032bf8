"""Parts that methods share."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from eagleray.distributed import gather
from eagleray.errors import Refusal

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
    """Linear layers with batch norm and an activation between them: `mlp([512, 2048, 128])` has one hidden layer.

    Args:
        widths: of the input, the hidden layers and the output.
        norm: False leaves the batch norms between the layers out.
        last_norm: adds a batch norm after the last layer (SimCLR's head; 2002.05709, appendix B.9).
        last_affine: whether that norm scales and shifts (SimSiam's and MoCo v3's does not).
        last_bias: of the last layer, where no norm follows it.
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
    """A copy that no gradient reaches: a teacher, to be moved by `ema_update`."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter; buffers stay the teacher's."""
    old: list[Tensor] = list(teacher.parameters())
    new: list[Tensor] = list(student.parameters())
    torch._foreach_lerp_(old, new, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]


@torch.no_grad()
def copy_buffers(teacher: nn.Module, student: nn.Module) -> None:
    """Gives the teacher the student's buffers (running statistics), for a teacher that is used in eval mode."""
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)


class Queue(nn.Module):
    """The newest embeddings of all workers, oldest overwritten first; checkpoints carry it. [size, dim]

    It starts with random directions, as MoCo's does (1911.05722, algorithm 1): `filled` says how many rows are real.

    Args:
        size: rows kept; a multiple of the rows that every `push` brings over all workers together.
        dim: width of a row.
    """

    rows: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("rows", nn.functional.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @property
    def filled(self) -> int:
        """Rows that have been pushed and not overwritten yet."""
        return min(int(self.count), len(self.rows))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Puts the rows of all workers in, in the order of their ranks: [n, dim] on each."""
        rows = gather(rows.detach()).to(self.rows.dtype)
        start = int(self.count) % len(self.rows)
        self.rows[start : start + len(rows)] = rows
        self.count += len(rows)


def check_queue(size: int, batch_size: int) -> None:
    """Whether a queue of so many rows can take whole batches, each overwriting the oldest.

    Raises:
        Refusal: it cannot; names the nearest size that can.
    """
    if size < batch_size or size % batch_size:
        near = max(1, round(size / batch_size)) * batch_size
        raise Refusal(
            f"method.queue={size} must hold whole batches of batch_size={batch_size}: "
            f"take {near}, or another multiple of {batch_size}"
        )
