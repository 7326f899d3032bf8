"""Statistics that stay while the batch normalises, and two players on one loss against two optimizers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eagleray.blocks import distributed
from eagleray.blocks.frozen import as_constant, frozen_statistics
from eagleray.blocks.optimizers import make_optimizer, set_rates
from eagleray.config import load_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.method import ParameterGroup
from eagleray.contracts.recipe import Recipe
from eagleray.runs.assemble import build_method
from eagleray.runs.processes import two_processes
from method_cases import INFO

START = Progress(0, 10, 0, 1)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5, momentum=None)
    return nn.Sequential(*layers).double()


def images(seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 6, 6, generator=draw, dtype=torch.float64) * torch.arange(1, 9).view(8, 1, 1, 1)


def passes() -> dict[str, Tensor]:
    """Two passes of this worker's share, the second with frozen statistics, and what is left of the network."""
    module = distributed.synchronise_batch_norm(network()) if distributed.world_size() > 1 else network()
    share = slice(distributed.rank(), None, distributed.world_size())
    module(images(1)[share])
    with frozen_statistics(module):
        frozen = module(images(2)[share])
    frozen.square().mean().backward()
    module(images(3)[share])
    whole = torch.empty(8, 5, dtype=torch.float64)
    for rank, part in enumerate(distributed.gather(frozen.detach()).chunk(distributed.world_size())):
        whole[rank :: distributed.world_size()] = part
    gradient = module.get_parameter("0.weight").grad
    assert gradient is not None
    mean = distributed.all_reduce_mean(gradient)
    return {"output": whole, "gradient": mean, **{name: each.clone() for name, each in module.named_buffers()}}


def test_frozen_statistics_normalise_by_the_batch_and_leave_no_trace():
    found, reference, twin = passes(), network(), network()
    torch.testing.assert_close(found["output"], twin(images(2)))  # as in training
    reference(images(1))
    reference(images(3))  # as if the frozen pass had not been
    for name, value in reference.named_buffers():
        assert torch.equal(found[name], value), name
    assert found["1.num_batches_tracked"] == 2
    reference.eval()
    with frozen_statistics(reference):  # evaluation stays evaluation
        torch.testing.assert_close(reference(images(2))[:1], reference(images(2)[:1]))


def test_frozen_statistics_are_restored_after_an_error():
    module = network()
    with pytest.raises(RuntimeError, match="shape"), frozen_statistics(module):
        module(torch.zeros(2, 3, 7, 7, dtype=torch.float64))
    assert all(
        part.track_running_stats for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)
    )


@pytest.mark.slow
def test_frozen_statistics_of_two_workers_are_those_of_one():
    alone = passes()
    for worker in two_processes(passes):
        for name, value in alone.items():
            torch.testing.assert_close(worker[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


class Players(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.generator, lr=10)]

    def forward(self, noise: Tensor, real: Tensor) -> Tensor:
        fake = self.generator(noise)
        loss_d = nn.functional.softplus(-self.discriminator(real)).mean()
        loss_d = loss_d + nn.functional.softplus(self.discriminator(fake.detach())).mean()
        return loss_d + nn.functional.softplus(-as_constant(self.discriminator, fake)).mean()


def two_optimizers(players: Players, recipe: Recipe, noise: Tensor, real: Tensor, optimizers: list[Any]) -> None:
    """The reference: each player's own loss, gradient and optimizer, both from the weights before the step."""
    generator, discriminator = players.generator, players.discriminator
    fake = generator(noise)
    loss_d = nn.functional.softplus(-discriminator(real)).mean()
    loss_d = loss_d + nn.functional.softplus(discriminator(fake.detach())).mean()
    loss_g = nn.functional.softplus(-discriminator(fake)).mean()
    for part, loss, optimizer, factor in zip(
        (generator, discriminator), (loss_g, loss_d), optimizers, (10, 1), strict=True
    ):
        for parameter, gradient in zip(
            part.parameters(), torch.autograd.grad(loss, list(part.parameters()), retain_graph=True), strict=True
        ):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * factor
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_two_players_on_one_loss_take_the_steps_of_two_optimizers(name: Any):
    recipe = Recipe(name=name, lr=0.01, lr_scaling="none", final_lr=1.0, weight_decay=0.0)
    ours, theirs = Players(), Players()
    one: Any = make_optimizer(ours, recipe)  # pyright: ignore[reportArgumentType]
    kinds = {"adamw": lambda p: torch.optim.AdamW(p, weight_decay=0), "sgd": lambda p: torch.optim.SGD(p, momentum=0.9)}
    two = [kinds[name](part.parameters()) for part in (theirs.generator, theirs.discriminator)]
    draw = torch.Generator().manual_seed(2)
    for _ in range(5):
        noise, real = (torch.randn(6, n, dtype=torch.float64, generator=draw) for n in (3, 4))
        set_rates(one, recipe, 256, START)
        one.zero_grad()
        ours(noise, real).backward()
        one.step()
        two_optimizers(theirs, recipe, noise, real, two)
        for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


def shared_players() -> dict[str, Tensor]:
    """Gradients of this worker's half."""
    players: Any = Players()
    players.discriminator[1] = nn.Identity()
    stepper = players
    if distributed.world_size() > 1:
        stepper = distributed.data_parallel(players)
    draw, share = torch.Generator().manual_seed(2), slice(distributed.rank(), None, distributed.world_size())
    noise, real = (torch.randn(6, n, dtype=torch.float64, generator=draw)[share] for n in (3, 4))
    stepper(noise, real).backward()
    return {name: p.grad for name, p in players.named_parameters()}


@pytest.mark.slow
def test_two_workers_give_two_players_the_gradients_of_one():
    alone = shared_players()
    for worker in two_processes(shared_players):
        for name, value in alone.items():
            torch.testing.assert_close(worker[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "muon"])
@pytest.mark.parametrize("decay", ["weights", "nothing"])
def test_a_factor_on_the_rate_multiplies_the_step_of_every_optimizer(
    name: Any, decay: Any, monkeypatch: pytest.MonkeyPatch
):
    recipe = Recipe(name=name, lr=0.01, weight_decay=0.1)
    steps = {}
    for factor in (1, 10):
        method = build_method(load_run(None, ["encoder.width=4", "method.hidden=8"]), INFO)
        group = ParameterGroup(method.encoder, lr=factor, decay=decay)
        monkeypatch.setattr(type(method), "parameter_groups", lambda self, group=group: (group,))
        optimizer = make_optimizer(method, recipe)
        before = {key: p.detach().clone() for key, p in method.named_parameters()}
        for number, p in enumerate(method.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
        set_rates(optimizer, recipe, 256, START)
        optimizer.step()
        steps[factor] = {key: p.detach() - before[key] for key, p in method.named_parameters()}
    for key, step in steps[1].items():
        assert step.abs().max() > 0
        expected = step * 10 if key.startswith("encoder.") else step
        torch.testing.assert_close(steps[10][key], expected, rtol=2e-3, atol=1e-6)
