"""Losses with their gradients, beside others and in two processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eagleray.blocks.distributed import all_reduce_mean, rank, world_size
from eagleray.runs.processes import two_processes


def with_gradients(loss_of: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    loss = loss_of(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def assert_same_gradients(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """Check that two losses are equal, and their gradients for all inputs too."""
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs))


def of_own_part(loss_of: Callable[..., Tensor], *wholes: Tensor) -> list[Tensor]:
    """Return the mean of the workers' losses, and its gradients for this worker's rows."""
    loss, *gradients = with_gradients(loss_of, *(whole.chunk(world_size())[rank()] for whole in wholes))
    return [all_reduce_mean(loss), *(gradient / world_size() for gradient in gradients)]


def assert_two_are_one(own_part: Callable[..., list[Tensor]], *arguments: Any, rtol: float = 1e-10) -> None:
    """Check that two workers get the loss and gradients of one.

    `own_part` is a function at the top of a test file that returns `of_own_part(...)`.
    """
    left, right = two_processes(own_part, *arguments)
    loss, *gradients = own_part(*arguments)
    torch.testing.assert_close([left[0], right[0]], [loss, loss], rtol=1e-10, atol=1e-10)
    joined = [torch.cat(parts) for parts in zip(left[1:], right[1:], strict=True)]
    torch.testing.assert_close(joined, gradients, rtol=rtol, atol=1e-10)
