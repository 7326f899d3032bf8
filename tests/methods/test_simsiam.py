"""SimSiam against lightly's loss, and where its gradient stops."""

import torch

from eagleray.blocks.optimizers import make_optimizer, set_rates
from eagleray.contracts.batch import Progress
from eagleray.contracts.recipe import Recipe
from eagleray_methods.simsiam import SimSiam
from method_cases import NOW, batch_of, small

SMALL = ["method.hidden=16", "method.projection=12", "method.bottleneck=8"]


def test_simsiam_is_lightlys_loss_and_its_gradient_stops_at_the_target():
    from lightly.loss import NegativeCosineSimilarity

    method = small("simsiam").train()
    assert isinstance(method, SimSiam)
    batch, theirs = batch_of(method), NegativeCosineSimilarity()
    loss = method(batch, NOW).loss
    first, second = (method.projector(method.encoder(view)) for view in batch.views)
    p, q = method.predictor(first), method.predictor(second)
    expected = theirs(p, second.detach()) / 2 + theirs(q, first.detach()) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    parameters = list(method.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters))


def test_simsiams_embeddings_are_normalised_without_scale_or_shift():
    method = small("simsiam").train()
    result = method(batch_of(method), NOW)
    for z in result.embeddings:
        torch.testing.assert_close(z.mean(0), torch.zeros(12).double(), rtol=0, atol=1e-7)
        torch.testing.assert_close(z.var(0, correction=0), torch.ones(12).double(), rtol=0, atol=1e-2)
    assert -1 <= float(result.loss.detach()) <= 1


def test_simsiams_predictor_keeps_its_rate():
    method = small("simsiam")
    assert isinstance(method, SimSiam)
    recipe = Recipe(name="sgd", lr=1, lr_scaling="none")
    optimizer = make_optimizer(method, recipe)
    set_rates(optimizer, recipe, 256, Progress(step=10, steps=10, epoch=1, epochs=1))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in method.predictor.parameters()} == {1}
    assert {rates[id(p)] for p in (*method.encoder.parameters(), *method.projector.parameters())} == {0}
