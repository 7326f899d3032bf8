import pytest
import torch
from torch import nn

from eagleray.blocks.optimizers import decays, make_optimizer, set_rates
from eagleray.config import load_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.method import Method
from eagleray.contracts.recipe import Recipe
from eagleray.runs.assemble import build_method
from method_cases import INFO

RECIPE = Recipe(name="muon", lr=0.01, weight_decay=0.1, beta2=0.99)
START = Progress(step=0, steps=10, epoch=0, epochs=1)


def small() -> Method:
    return build_method(load_run(None, ["encoder.width=8", "method.hidden=16"]), INFO)


def orthogonal(name: str, parameter: torch.Tensor) -> bool:
    return name.startswith("encoder.") and decays(name, parameter)


def test_muon_is_torchs_for_the_encoders_weights_and_torchs_adamw_for_all_else():
    """Torch's takes matrices alone: a convolution is given to it as one with a row for each output."""
    method = small()
    optimizer = make_optimizer(method, RECIPE)
    set_rates(optimizer, RECIPE, 256, START)
    theirs = {
        name: nn.Parameter(p.detach().flatten(1).clone() if orthogonal(name, p) else p.detach().clone())
        for name, p in method.named_parameters()
    }
    named = dict(method.named_parameters())
    weights, heads, plain = (
        [theirs[name] for name, p in named.items() if (orthogonal(name, p), decays(name, p)) == kind]
        for kind in ((True, True), (False, True), (False, False))
    )
    assert weights
    assert heads
    peers = [
        torch.optim.Muon(weights, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(heads, lr=0.01, weight_decay=0.1, betas=(0.9, 0.99)),
        torch.optim.AdamW(plain, lr=0.01, weight_decay=0.0, betas=(0.9, 0.99)),
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for name, p in method.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            theirs[name].grad = p.grad.reshape(theirs[name].shape).clone()
        for each in (optimizer, *peers):
            each.step()
    for name, p in method.named_parameters():
        # Both orthogonalise in bfloat16.
        torch.testing.assert_close(p.reshape(theirs[name].shape), theirs[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_of_muon_is_as_large_as_one_of_adamw_and_moves_all_directions_alike(name: str):
    method = small()
    recipe = RECIPE.model_copy(update={"name": name, "weight_decay": 0.0})
    optimizer = make_optimizer(method, recipe)
    set_rates(optimizer, recipe, 256, START)
    weights = [p for key, p in method.named_parameters() if orthogonal(key, p)]
    before = [p.detach().clone() for p in weights]
    for p in method.parameters():
        p.grad = torch.randn(p.shape) + 3  # one direction is far stronger than all others
    optimizer.step()
    for old, p in zip(before, weights, strict=True):
        step = (p.detach() - old).flatten(1)
        assert step.square().mean().sqrt() == pytest.approx(0.01 * (1.0 if name == "adamw" else 0.2), rel=0.3)
        strengths = torch.linalg.svdvals(step)
        assert (strengths[len(strengths) // 2] > 0.5 * strengths[0]) == (name == "muon")
