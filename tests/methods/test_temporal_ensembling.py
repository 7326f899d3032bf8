"""Temporal ensembling against the paper's algorithm, told image by image, and what it keeps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from eagleray.blocks import distributed
from eagleray.contracts.batch import Batch, EpochView, Progress
from eagleray.contracts.method import Method
from eagleray.runs.processes import two_processes
from method_cases import batch_of, share, small

# The images of each epoch: the last batch is dropped, so that some are left out.
EPOCHS = [[0, 1, 2, 3, 4, 5, 6, 7], [5, 90, 7, 1, 30, 31, 32, 0], [1, 2, 30, 4, 5, 40, 91, 7], [7, 6, 5, 4, 3, 2, 1, 0]]


def late(epoch: int) -> Progress:
    return Progress(step=80 + epoch, steps=100, epoch=epoch, epochs=5)  # past the ramp


def begin(method: Method, epoch: int) -> None:
    method.before_epoch(EpochView(lambda: torch.zeros(0), None, late(epoch)))


def batch_in(method: Method, epoch: int) -> Batch:
    return replace(batch_of(method), indices=share(torch.tensor(EPOCHS[epoch])))


def change(method: Method, seed: int) -> None:
    """Change the parameters, as a step would."""
    with torch.no_grad():
        for number, p in enumerate(method.parameters()):
            draw = torch.Generator().manual_seed(100 * seed + number)
            p.add_(0.2 * torch.randn(p.shape, dtype=p.dtype, generator=draw))


def gradients(loss: Tensor, method: Method) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(method.parameters()))


def test_loss_and_gradient_are_the_papers_in_every_epoch():
    method = small("temporal_ensembling", "method.weight=7", "method.momentum=0.6")
    past: dict[int, list[Tensor]] = {}  # each image's predictions, one an epoch
    for epoch, images in enumerate(EPOCHS):
        begin(method, epoch)
        batch, present = batch_in(method, epoch), {}
        assert batch.labelled is not None
        for again in range(2):  # targets do not change within an epoch
            change(method, 2 * epoch + again)
            shown = torch.cat([batch.labelled.views[0], batch.views[0]])
            known, predicted = method.classifier(method.encoder(shown)).softmax(1).split([4, 8])
            wanted = -sum(p[y].log() for p, y in zip(known, batch.labelled.targets.tolist(), strict=True)) / 4
            for image, p in zip(images, predicted, strict=True):
                present[image] = p.detach().clone()
                if image in past:
                    average = torch.zeros(3, dtype=torch.float64)
                    for earlier in past[image]:
                        average = 0.6 * average + 0.4 * earlier
                    target = average / (1 - 0.6 ** len(past[image]))
                    wanted = wanted + 7 * sum((p[k] - target[k]) ** 2 / 3 for k in range(3)) / 8
            assert isinstance(wanted, Tensor)
            result = method(batch, late(epoch))
            torch.testing.assert_close(result.loss, wanted)
            torch.testing.assert_close(gradients(result.loss, method), gradients(wanted, method))
        for image, p in present.items():
            past.setdefault(image, []).append(p)
    assert {len(each) for each in past.values()} == {1, 2, 3, 4}  # so that each count's correction was needed


def test_an_image_left_out_keeps_its_target():
    method = small("temporal_ensembling")
    method(batch_in(method, 0), late(0))
    begin(method, 1)
    before = method.ensemble.clone()
    assert before[6].sum() > 0
    method(batch_in(method, 1), late(1))
    begin(method, 2)
    assert torch.equal(method.ensemble[6], before[6])
    assert not torch.equal(method.ensemble[7], before[7])
    assert method.counts[[6, 7, 90, 99]].flatten().tolist() == [1, 2, 1, 0]


def test_the_first_epoch_has_the_labelled_loss_alone():
    whole, labelled = small("temporal_ensembling"), small("temporal_ensembling", "method.weight=0")
    losses = [method(batch_in(method, 0), late(0)).loss for method in (whole, labelled)]
    torch.testing.assert_close(losses[0], losses[1])


def steps(method: Method, first: int = 0) -> list[Tensor]:
    """Return the losses and gradients of two epochs, and what is kept."""
    if distributed.world_size() > 1:
        distributed.synchronise_batch_norm(method)
    stepper, found = distributed.data_parallel(method), []
    for epoch in (first, first + 1):
        begin(method, epoch)
        change(method, epoch)
        method.zero_grad()
        loss = stepper(batch_in(method, epoch), late(epoch)).loss
        loss.backward()
        found += [distributed.all_reduce_mean(loss.detach())]
        found += [p.grad.clone() for p in method.parameters() if p.grad is not None]
    return [*found, method.ensemble, method.counts, method.latest]


def two_epochs() -> list[Tensor]:
    return steps(small("temporal_ensembling"))


@pytest.mark.slow
def test_two_workers_keep_the_predictions_of_both():
    alone = two_epochs()
    for together in two_processes(two_epochs):
        torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-9)


def test_a_run_resumed_in_the_middle_of_an_epoch_has_the_same_targets():
    whole, resumed = small("temporal_ensembling"), small("temporal_ensembling")
    steps(whole)
    resumed.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    for ours, theirs in zip(steps(whole, 2), steps(resumed, 2), strict=True):
        assert torch.equal(ours, theirs)
