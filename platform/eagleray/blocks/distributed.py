"""Operations across workers, with gradients.

With a single process each of them is the identity.

The rule that every loss follows: gather with gradient, mean over the LOCAL anchors, no further factor.
The objective is then the mean over workers of their losses, each operation here returns its exact
derivative, and DistributedDataParallel averages: the gradient is that of one process on the whole batch.
(A bare `all_reduce` in a loss gives a right-looking loss and a wrong gradient, and so does a gather
without gradient.)

Every worker must hold tensors of one shape, and must call these operations in the same order.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from eagleray.contracts.errors import ConfigError

_exchange: Callable[[], AbstractContextManager] = nullcontext  # around every exchange between workers


@contextmanager
def measured(exchange: Callable[[], AbstractContextManager]) -> Iterator[None]:
    """Enter a context around every exchange between workers (`runs.profile` reads its clock there)."""
    global _exchange
    before, _exchange = _exchange, exchange
    try:
        yield
    finally:
        _exchange = before


def rank() -> int:
    """Return this worker's number; 0 with one process."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """Return the number of workers; 1 with one process."""
    return dist.get_world_size() if _grouped() else 1


def gather(x: Tensor) -> Tensor:
    """Gather all workers' tensors, with gradient.

    In the order of their ranks, [n, ...] -> [workers * n, ...].
    """
    return _Gather.apply(x) if world_size() > 1 else x  # type: ignore[return-value]


def own_rows(whole: Tensor) -> Tensor:
    """Return this worker's rows of a gathered tensor.

    [workers * n, ...], the same on all workers, -> [n, ...]. The inverse of `gather`. Use it for random numbers of
    images: draw them for the whole batch from `Method.rng`, then take this worker's rows.
    """
    return whole.chunk(world_size())[rank()]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum a tensor over workers, with gradient.

    `x` may have any shape and is unchanged; all workers get the same result.
    """
    return _Sum.apply(x) if world_size() > 1 else x  # type: ignore[return-value]


def all_reduce_mean(x: Tensor) -> Tensor:
    """Average a tensor over workers, with gradient.

    `x` may have any shape and is unchanged; all workers get the same result.
    """
    return all_reduce_sum(x) / world_size() if world_size() > 1 else x


def broadcast(x: Tensor, source: int = 0) -> Tensor:
    """Copy one worker's tensor to all, without gradient.

    The worker is `source`; `x` is unchanged.
    """
    if world_size() == 1:
        return x
    copy = x.detach().clone(memory_format=torch.contiguous_format)
    with _exchange():
        dist.broadcast(copy, source)
    return copy


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute channel means and variances over all workers.

    The variance is biased; both have gradients. [n, C, ...] -> [C], [C]
    """
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0)
    return _combined(mean, variance)


def _combined(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance over all workers, of each one's, with gradient: [C], [C]."""
    means, variances = gather(torch.stack([mean, variance])[None]).unbind(1)  # each [workers, C]
    # Combine the moments of the parts without the cancellation of E[x^2] - E[x]^2 (Chan et al. 1979).
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


def data_parallel(module: nn.Module) -> nn.Module:
    """Make the backward pass average the workers' gradients.

    With one process, the module is returned as it is. Keep the result until that backward pass has ended.
    """
    if world_size() == 1:
        return module
    parallel = DistributedDataParallel(module)
    # All workers compute the same buffers. The attribute, because torch 2.13 deprecates the argument of this name.
    parallel.broadcast_buffers = False
    return parallel


def barrier() -> None:
    """Wait for all workers."""
    if world_size() > 1:
        dist.barrier()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        with _exchange():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        # Every worker's loss depends on x through the sum, so x receives the sum of all their gradients.
        return all_reduce_sum(gradient)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        with _exchange():
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return all_reduce_sum(gradient).chunk(world_size())[rank()]


class _Normalise(torch.autograd.Function):
    """Batch normalisation by torch's kernels of evaluation, which are told the mean and variance of all samples.

    Single operations would pass over all samples a dozen times, and keep them in float32.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):  # type: ignore[override]
        # The statistics that it would update are there for their type alone: those of bfloat16 are float32.
        kind = torch.promote_types(x.dtype, torch.float32)
        unused = torch.zeros(2, x.shape[1], dtype=kind, device=x.device)
        mean, variance = _combined(*torch.ops.aten.batch_norm_update_stats(x, *unused, 0.0))
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0], mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor):  # type: ignore[override]
        x, weight, mean, variance = ctx.saved_tensors
        told = mean, variance, None, None, False, ctx.eps
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(gradient, x, weight, *told, [True] * 3)
        # That is the gradient as if the statistics were constants. They depend on x: the mean of what reaches the
        # normalised samples, and their component along these, is lost.
        lost = all_reduce_sum(torch.stack([of_weight, of_bias])) / (world_size() * x.numel() // x.shape[1])
        lost *= -(variance + ctx.eps).rsqrt() * (1 if weight is None else weight)
        of_x += torch.native_batch_norm(x, lost[0], lost[1], mean, variance, False, 0.0, ctx.eps)[0]
        return of_x, *((None, None) if weight is None else (of_weight, of_bias)), None


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over all workers' samples.

    [n, C, ...] -> the same shape. Output, gradient and running statistics equal those of one process on the whole
    batch. torch's own SyncBatchNorm does not run on CPUs; this one runs anywhere. Its `state_dict` is that of the
    BatchNorm it replaces, so that a checkpoint works with any number of workers. In evaluation mode, or with a single
    process, it is ordinary BatchNorm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalisation needs [n, C, ...], not shape {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        normalised, mean, variance = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            samples = world_size() * input.numel() // input.shape[1]
            self._track(mean, variance * samples / (samples - 1))
        return normalised

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # momentum None: the plain average of all batches, as in torch
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


class SynchronisedBatchNormAct(SynchronisedBatchNorm):
    """The same, followed by dropout and activation.

    As timm's BatchNormAct2d, whose place it takes.
    """

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Make batch norms use all workers' statistics.

    Every BatchNorm1d, 2d and 3d inside `module` is changed, and timm's BatchNormAct2d, which an activation follows;
    returns `module`. Call it once the module is on its device: a GPU gets torch's SyncBatchNorm, a CPU
    `SynchronisedBatchNorm`. Parameters, buffers and their names stay: optimizers and checkpoints still match.

    Raises:
        ConfigError: there is another kind of batch norm, which this would not synchronise.
    """
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    synchronised: dict[type[nn.Module], Any] = dict.fromkeys(plain, SynchronisedBatchNorm)
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    if any(type(norm) not in plain for norm in norms):
        from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm  # slow to import

        synchronised[BatchNormAct2d], convert = SynchronisedBatchNormAct, convert_sync_batchnorm
    if odd := [type(norm).__name__ for norm in norms if type(norm) not in (*synchronised, *synchronised.values())]:
        raise ConfigError(f"workers: the batch norm {odd[0]} cannot be shared by several workers; set workers=1")
    if any(parameter.is_cuda for parameter in module.parameters()):
        return convert(module)
    for norm in norms:
        if type(norm) in synchronised:
            norm.__class__ = synchronised[type(norm)]  # it adds no state: only the forward pass changes
    return module
