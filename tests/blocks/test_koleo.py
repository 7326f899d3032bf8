"""KoLeo against lightly's, where its value is known, across workers, and beside the losses of methods."""

import copy
from itertools import combinations

import pytest
import torch
from torch import Tensor

from eagleray.blocks import distributed
from eagleray.blocks.koleo import KoLeo, koleo
from eagleray.config import load_run, read_run
from eagleray.config.registry import find
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.runs.assemble import assemble
from eagleray.runs.method_checks import built, step
from eagleray.runs.processes import two_processes
from gradients import assert_two_are_one, of_own_part, with_gradients
from method_cases import METHODS, NOW, batch_of, settings, small

WEIGHT = 0.3


def gaussian(count: int, width: int = 64) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


def test_the_term_is_lightlys():
    from lightly.loss import KoLeoLoss

    features = gaussian(12, 6)
    expected = with_gradients(KoLeoLoss(), features)
    torch.testing.assert_close(with_gradients(koleo, features), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "known", "deviation"), [(16, -0.224, 0.014), (64, -0.175, 0.006), (256, -0.134, 0.004)]
)
def test_the_term_of_gaussians_is_known(count: int, known: float, deviation: float):
    """Means and deviations of many draws, by lightly's: single draws of 16, 64 and 256 gave -.254, -.165, -.131."""
    found = [koleo(part) for part in gaussian(20 * count).split(count)]
    assert float(torch.stack(found).mean()) == pytest.approx(known, abs=3 * deviation / 20**0.5)


def test_equal_features_have_a_finite_term_and_gradient():
    """-log(sqrt(64) e + e); without e it would be infinite."""
    loss, gradient = with_gradients(koleo, torch.ones(8, 64, dtype=torch.float64))
    assert float(loss) == pytest.approx(16.2, abs=0.03)
    assert bool(gradient.isfinite().all())


def test_the_term_is_float32_inside_bf16_autocast():
    features = gaussian(16).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = koleo(features)
    assert torch.equal(found, koleo(features))


def halves(features: Tensor) -> list[Tensor]:
    return of_own_part(koleo, features)


@pytest.mark.slow
def test_two_workers_get_the_term_and_gradient_of_one():
    features = gaussian(12, 3)
    features[6:] = features[:6] + 0.1  # the nearest neighbours are another worker's
    assert_two_are_one(halves, features)


def made(name: str, *more: str) -> Method:
    return small(name, *more).train()


def test_the_term_is_that_of_each_view_and_no_hook_stays():
    method = made("simclr")
    batch = batch_of(method)
    expected = method(batch, NOW).loss
    features = method.encoder(torch.cat(batch.views)).chunk(2)
    expected = expected + WEIGHT * (koleo(features[0]) + koleo(features[1])) / 2
    found = KoLeo(method, WEIGHT)(batch, NOW).loss
    torch.testing.assert_close(found, expected)
    parameters = list(method.parameters())
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert not method.encoder._forward_hooks


def test_small_crops_and_the_teacher_do_not_count():
    method = made("dino", "method.local_crops=2")
    batch = batch_of(method)
    with torch.no_grad():
        features = method.encoder(torch.cat(batch.views[:2])).chunk(2)
        expected = method(batch, NOW).loss + WEIGHT * (koleo(features[0]) + koleo(features[1])) / 2
    method = made("dino", "method.local_crops=2")  # the centre has moved
    torch.testing.assert_close(KoLeo(method, WEIGHT)(batch, NOW).loss.detach(), expected)


@pytest.mark.parametrize(("name", "encoded"), [("mean_teacher", [0]), ("fixmatch", [0, 1]), ("label_propagation", [0])])
def test_views_behind_labelled_images_count_and_nothing_is_encoded_again(name: str, encoded: list[int]):
    """Of mean teacher's two views the teacher sees the second one."""
    batch, images = batch_of(made(name)), {}
    assert batch.labelled is not None
    assert len(batch.labelled.targets) % len(batch.indices), "views begin between multiples of their length"
    for steps in (made(name), KoLeo(made(name), WEIGHT)):
        encoder, seen = getattr(steps, "method", steps).encoder, []
        encoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        steps.eval()(batch, NOW)
        images[type(steps)] = seen
    assert len(set(map(tuple, images.values()))) == 1
    alone, spread = made(name).eval(), KoLeo(made(name).eval(), WEIGHT)
    with torch.no_grad():
        terms = torch.stack([koleo(alone.encoder(batch.views[place])) for place in encoded])
    found = (spread(batch, NOW).loss - alone(batch, NOW).loss).detach() / WEIGHT
    torch.testing.assert_close(found, terms.mean())


@pytest.mark.parametrize("name", [name for name in METHODS if "only_labels" not in find("method", name).needs])
def test_the_term_of_every_method_is_that_of_whole_views(name: str):
    """Of those views that the method encodes with gradient, or of all if it encodes none of them."""
    method = small(name).eval()  # features do not depend on what else is in a pass
    batch, size = batch_of(method), method.data.image_size
    alone, steps = copy.deepcopy(method), KoLeo(method, WEIGHT)
    found = (steps(batch, NOW).loss - alone(batch, NOW).loss) / WEIGHT
    with torch.no_grad():
        terms = [koleo(alone.encoder(view)) for view in batch.views if view.shape[-1] == size]
    subsets = [torch.stack(each).mean() for k in range(len(terms)) for each in combinations(terms, k + 1)]
    assert any(torch.allclose(found, each, rtol=1e-5) for each in subsets), (found, terms)
    trained = [parameter for parameter in method.encoder.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(found, trained, allow_unused=True)
    assert any(bool(gradient.any()) for gradient in gradients if gradient is not None)


def worker(file: dict) -> dict[str, Tensor]:
    method = built(read_run(file))
    steps = KoLeo(method, WEIGHT)
    if distributed.world_size() > 1:
        distributed.synchronise_batch_norm(method)
    return step(method, stepper=distributed.data_parallel(steps))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "jigsaw", "mae"])  # the others encode no whole view themselves
def test_two_workers_take_the_step_of_one(name: str):
    file = load_run(None, settings(name)).file()
    alone = worker(file)
    for each in two_processes(worker, file):
        torch.testing.assert_close(each, alone, rtol=1e-7, atol=1e-9)


def test_it_is_off_by_default_and_then_the_method_takes_its_steps_alone():
    plain, spread = (load_run(None, [*settings("simclr"), "threads=1", *more]) for more in ([], ["koleo=0.2"]))
    built = assemble(plain)
    assert built.forward is built.method
    built = assemble(spread)
    assert isinstance(built.forward, KoLeo)
    assert (built.forward.method, built.forward.weight) == (built.method, 0.2)


def test_an_encoder_that_no_gradient_trains_is_refused():
    method = small("simclr")
    method.encoder.requires_grad_(False)
    with pytest.raises(ConfigError, match="koleo: no gradient trains this encoder; set koleo=0"):
        KoLeo(method, WEIGHT)


def test_a_method_without_unlabelled_images_is_refused():
    with pytest.raises(ConfigError, match=r"koleo=0\.2 takes unlabelled images, and supervised has none; remove it"):
        load_run(None, ["method=supervised", "koleo=0.2"])
