"""What every method that learns from few labels and other images must fulfil."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eagleray.config import load_run
from eagleray.config.registry import find
from eagleray.contracts.batch import EpochView, Progress
from eagleray.contracts.method import Method
from eagleray.data.images import Data
from eagleray.loop import train
from eagleray.runs.assemble import images_of
from eagleray.runs.checkpoint import load_checkpoint, newest_checkpoint
from eagleray.runs.method_checks import built
from method_cases import INFO, METHODS, batch_of, finished_run, own, settings, small

FAMILY = [name for name in METHODS if "labels" in find("method", name).needs and name != "distillation"]
LATE = Progress(step=8, steps=10, epoch=8, epochs=10)  # past every ramp


def ready(name: str, weight: float | None = None) -> Method:
    """Return a small method in its second epoch, whose average, if it has one, is no copy of the student."""
    method = small(name, *([] if weight is None else [f"method.weight={weight}"]))
    images = torch.randn(100, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labelled = torch.tensor([90, 91, 95, 99]), torch.tensor([0, 1, 1, 2])
    with torch.no_grad():
        method(batch_of(method), LATE)  # so that there are targets from an earlier epoch
        for number, p in enumerate(method.parameters()):
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(number)))
        method.before_epoch(EpochView(lambda: method.encode(images), labelled, LATE))
    return method.train()


def gradients(method: Method) -> Mapping[str, Tensor]:
    method.zero_grad()
    method(batch_of(method), LATE).loss.backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def run_without_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "trained", INFO, "method=simclr", "encoder.width=8", "seed=7")


@pytest.mark.parametrize("name", FAMILY)
def test_every_one_starts_from_the_network_of_a_run_without_labels(name: str, run_without_labels: Path):
    own_settings = [each for each in settings(name) if not each.startswith("encoder.")]
    method = built(load_run(None, [*own_settings, "encoder=pretrained", f"encoder.run={run_without_labels}"]))
    checkpoint = newest_checkpoint(run_without_labels)
    assert checkpoint is not None
    trained_before = load_checkpoint(checkpoint, torch.device("cpu"))["method"]
    weight = next(value for key, value in trained_before.items() if key.startswith("encoder.") and value.dim() == 4)
    assert any(torch.equal(p.float(), weight) for p in method.encoder.parameters() if p.shape == weight.shape)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The averaged network, where there is one, starts there too.
    torch.testing.assert_close(method.eval().encode(images), method.encoder(images))
    moved = gradients(method.train())
    assert any(key.startswith("encoder.") for key in moved)


@pytest.mark.parametrize("name", FAMILY)
def test_the_unlabelled_term_alone_moves_the_student_and_stops_at_its_teacher(name: str):
    """A published mean teacher has no gradient at all: its student's logits are read from the teacher's output."""
    alone, together = gradients(ready(name, 0.0)), gradients(ready(name))
    unlabelled = {key: together[key] - alone.get(key, torch.zeros(())) for key in together}
    for part in ("encoder", "classifier"):
        moved = [value.abs().max() for key, value in unlabelled.items() if key.startswith(part)]
        assert max(moved) > 1e-7, f"the unlabelled term does not reach the {part}"
    still = {key for key, p in ready(name).named_parameters() if not p.requires_grad}
    assert not still & set(together)


def trained(data: Data, name: str, directory: Path) -> Mapping[str, Tensor]:
    run = load_run(
        None,
        [*settings(name), *own(name, "ON_DIGITS"), "data.limit=256", "epochs=2", "batch_size=56", "labels.per_class=4",
         "evaluate.protocols=[accuracy]", "evaluate.test=false", "threads=1", "device=cpu"],
    )  # fmt: skip
    list(train(run, directory, data=data))
    saved = newest_checkpoint(directory)
    assert saved is not None
    return load_checkpoint(saved, torch.device("cpu"))["method"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_labels_of_unlabelled_images_never_reach_it(name: str, tmp_path: Path):
    """With real draws and the whole network: other labels of the other images, the same weights."""
    run = load_run(None, [*settings(name), "data.limit=256", "labels.per_class=4"])
    data = images_of(run)
    assert data.train.labels is not None
    assert run.labels is not None
    known = data.labelled(run.labels, run.seed)
    before = trained(data, name, tmp_path / "true")
    others = np.delete(np.arange(len(data.train)), known.numpy())
    labels = data.train.labels.copy()
    labels[others] = -1  # unknown: so that the same images are drawn
    hidden = data.train.only(np.arange(len(labels)))
    hidden.labels = labels
    after = trained(replace(data, train=hidden), name, tmp_path / "hidden")
    for key, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, after[key]), key
