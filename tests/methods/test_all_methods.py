"""What every method must fulfil: two workers equal one, and what it declares is what it does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from eagleray.blocks import distributed
from eagleray.contracts.encoder import Encoder
from method_cases import METHODS, NOW, batch_of, small
from two_processes import two_processes


def one_step(name: str) -> dict[str, Tensor]:
    """Loss, gradients, and all the state after a step, as one worker of a group or as a single process."""
    method = small(name).train()
    stepper: Any = method
    if distributed.world_size() > 1:
        method = distributed.synchronise_batch_norm(method)
        stepper = distributed.data_parallel(method)
    result = stepper(batch_of(method), NOW)
    result.loss.backward()
    gradients = {f"gradient {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    method.before_step(NOW)
    torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1).step()
    method.after_step(NOW)
    loss = distributed.all_reduce_mean(result.loss.detach())
    return {"loss": loss, **gradients, **{f"state {n}": v.clone() for n, v in method.state_dict().items()}}


def steps(names: list[str]) -> dict[str, dict[str, Tensor]]:
    """`one_step` of several methods."""
    return {name: one_step(name) for name in names}


@pytest.fixture(scope="module")
def together(request: pytest.FixtureRequest) -> list[dict[str, dict[str, Tensor]]]:
    """What two workers get from the methods that are tested. To start two processes takes longer than a step."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    return two_processes(steps, [t.callspec.params["name"] for t in tests if "together" in t.fixturenames])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_workers_take_the_step_of_one(name: str, together: list[dict[str, dict[str, Tensor]]]):
    """Value, gradient, teacher and statistics, on asymmetric data."""
    alone = one_step(name)
    assert any(key.startswith("gradient") and value.abs().max() > 1e-6 for key, value in alone.items())
    for worker in together:
        assert worker[name].keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(worker[name][key], value, rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_to_its_declaration(name: str):
    method = small(name).train()
    result = method(batch_of(method), NOW)
    assert result.loss.ndim == 0
    assert result.loss.requires_grad
    assert set(result.metrics) == set(type(method).metrics)
    assert not any(z.requires_grad for z in result.embeddings)
    assert len({len(z) for z in result.embeddings}) == 1
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    assert method.eval().encode(images).shape == (5, method.encoder.dim)


@pytest.mark.parametrize("name", METHODS)
def test_the_encoder_that_is_judged_is_kept_for_fine_tuning(name: str):
    """Alone, or with more of the network behind it."""
    method = small(name).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in method.parameters():  # so that a teacher is no copy of its student
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=draw))
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=draw)
    kept = [part for part in method.backbone.modules() if isinstance(part, Encoder)]
    assert any(torch.equal(encoder(images), method.encode(images)) for encoder in kept)
    assert method.backbone(images).ndim == 2
