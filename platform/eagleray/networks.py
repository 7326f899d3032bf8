"""Parts that methods share."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def mlp(widths: Sequence[int], *, last_norm: bool = False, last_bias: bool = True) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them: `mlp([512, 2048, 128])` has one hidden layer.

    `last_norm` adds a batch norm after the last layer (SimCLR's head; 2002.05709, appendix B.9).
    """
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths[:-1]):
        # The norm has a bias of its own.
        layers += [nn.Linear(inner, outer, bias=False), nn.BatchNorm1d(outer), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias and not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1]))
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
