"""What every method must fulfil, checked on a few random images.

The tests ask it of every shipped method, `eagleray check FILE.py` of a user's own. Each check yields its complaints,
which name the remedy; a method that is right gets none.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor, nn

from eagleray.augment.override import overridden
from eagleray.blocks import distributed
from eagleray.config import Run, read_run
from eagleray.config.run import changed
from eagleray.config.sections import Augment
from eagleray.contracts.batch import Batch, DataInfo, EpochView, LabelledBatch, Progress
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.seeds import generator, seed_all
from eagleray.runs.assemble import build_method
from eagleray.runs.processes import two_processes

INFO = DataInfo(image_size=8, channels=3, samples=100, classes=3, batch_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
NOW = Progress(step=3, steps=10, epoch=0, epochs=1)
BATCH = INFO.batch_size
COLD = 2e-3  # a temperature near 0, at which exp(1 / temperature) is infinite in float32

Check = Callable[[Run], Iterator[str]]


def built(run: Run) -> Method:
    """Return the run's method in float64, in training mode, for images of 8 pixels or `image_size`."""
    return build_method(run, replace(INFO, image_size=run.image_size or INFO.image_size)).double().train()


def share(x: Tensor) -> Tensor:
    """Return this worker's rows of a single process's values."""
    return x.chunk(distributed.world_size())[distributed.rank()]


def batch_of(method: Method) -> Batch:
    """Return eight images whose halves differ.

    So a worker's own half says little about the whole.
    """
    draw, size = generator(1), method.data.image_size
    views = []
    for declared_view in overridden(method.views, Augment()):
        side = declared_view.size or size
        view = torch.randn(BATCH, 3, side, side, dtype=torch.float64, generator=draw)
        view[BATCH // 2 :] = view[BATCH // 2 :] * 3 + 1
        views.append(share(view))
    labelled = None
    if method.needs & {"labels", "only_labels"}:
        images = torch.randn(4, 3, size, size, dtype=torch.float64, generator=draw)
        images[2:] = images[2:] * 2 - 1
        places = torch.tensor([90, 91, 95, 99])
        labelled = LabelledBatch([share(images)], share(torch.tensor([0, 1, 1, 2])), share(places))
    return Batch(views, share(torch.arange(BATCH)), labelled)


def step(method: Method, progress: Progress = NOW, stepper: nn.Module | None = None) -> dict[str, Tensor]:
    """Take a step as the loop does, with plain SGD.

    Returns:
        Loss, gradients, and all the state after the step.
    """
    result = (stepper or method)(batch_of(method), progress)
    method.zero_grad()
    result.loss.backward()
    gradients = {f"gradient {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    method.before_step(progress)
    torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1).step()
    method.after_step(progress)
    numbers = {"loss": result.loss.detach(), **{f"metric {n}": v for n, v in result.metrics.items()}}
    means = {n: distributed.all_reduce_mean(torch.as_tensor(v, dtype=torch.float64)) for n, v in numbers.items()}
    return {**means, **gradients, **{f"state {n}": v.clone() for n, v in method.state_dict().items()}}


def shapes(run: Run) -> Iterator[str]:
    """Check that a step and an encoding return what the contract says."""
    method = built(run)
    batch = batch_of(method)
    result = method(batch, NOW)
    rows = len((batch.views or (batch.labelled.views if batch.labelled else []))[0])
    if result.loss.ndim or not result.loss.requires_grad:
        yield f"the loss has shape {list(result.loss.shape)}; return a scalar that carries the gradient"
    if set(result.metrics) != set(type(method).metrics):
        yield f"a step returns the metrics {sorted(result.metrics)}, and declared are {sorted(type(method).metrics)}"
    if any(z.requires_grad for z in result.embeddings):
        yield "the embeddings of a StepResult carry the gradient; detach them"
    sizes = [list(z.shape) for z in result.embeddings]
    if not sizes or any(len(size) != 2 or size[0] not in (rows, BATCH) for size in sizes):
        yield f"the embeddings of a StepResult have the shapes {sizes}; return one [{rows}, D] for each view"
    images = torch.randn(5, *batch_image(method), dtype=torch.float64, generator=generator(2))
    with torch.no_grad():
        for name, features in (("encode", method.eval().encode(images)), ("backbone", method.backbone(images))):
            width = method.encoder.dim if name == "encode" else features.shape[-1]
            if list(features.shape) != [5, width]:
                yield f"{name} turns 5 images into {list(features.shape)}; return [5, {width}], a row for each image"
        if method.has_error:
            errors, alone = method.error(images), torch.stack([method.error(image[None]).mean() for image in images])
            if list(errors.shape) != [5]:
                yield f"error turns 5 images into {list(errors.shape)}; return [5], a number for each image"
            elif not torch.allclose(errors, alone):
                yield "an image's error is another among others; compute it of that image alone, and draw nothing"


def batch_image(method: Method) -> tuple[int, int, int]:
    """Return the shape of one image, [C, H, W]."""
    return method.data.channels, method.data.image_size, method.data.image_size


def kept_encoder(run: Run) -> Iterator[str]:
    """Check that what is judged is what export and fine-tuning take."""
    method = built(run).eval()
    with torch.no_grad():
        for number, p in enumerate(method.parameters()):  # so that a teacher is no copy of its student
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=generator(number)))
        images = torch.randn(5, *batch_image(method), dtype=torch.float64, generator=generator(0))
        judged = method.encode(images)
        kept = [part for part in method.backbone.modules() if isinstance(part, Encoder)]
        if not any(torch.equal(encoder(images), judged) for encoder in kept):
            yield "encode() is the output of no encoder in `backbone`; let `backbone` return the network that is judged"


def stopped_gradients(run: Run) -> Iterator[str]:
    """Check that a moving average of weights receives no gradient.

    Such weights start as a copy of others, and `after_step` changes them.
    """
    method = built(run)
    parameters = dict(method.named_parameters())
    copies = {
        name
        for name, p in parameters.items()
        if p.unique().numel() > 1 and any(p.shape == o.shape and p.equal(o) for o in parameters.values() if o is not p)
    }
    method(batch_of(method), NOW).loss.backward()
    learning = {name for name in copies if parameters[name].grad is not None}
    with torch.no_grad():
        for number, p in enumerate(parameters.values()):
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=generator(number)))
    before = {name: p.clone() for name, p in parameters.items()}
    method.after_step(NOW)
    if wrong := sorted(name for name in learning if not before[name].equal(parameters[name])):
        yield (
            f"{_listed(wrong)} follows other weights in after_step and receives a gradient too; "
            "make it with frozen_copy, and call it under torch.no_grad()"
        )


def resumable(run: Run) -> Iterator[str]:
    """Check that a step after a checkpoint is the step never interrupted."""
    whole, resumed = built(run), built(run)
    first, second = replace(NOW, step=0), replace(NOW, step=1)
    _begin_epoch(whole, first)
    step(whole, first)
    resumed.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    ours, theirs = _loose(whole), _loose(resumed)
    lost = sorted(name for name, value in ours.items() if name not in theirs or theirs[name] != value)
    seed_all(0)
    expected = step(whole, second)
    seed_all(0)
    if wrong := _different(expected, step(resumed, second)):
        culprit = f", because {_listed(lost)} is in no checkpoint" if lost else ""
        yield (
            f"after a checkpoint {_listed(wrong)} of the next step differs{culprit}; "
            "keep state in buffers (register_buffer), or compute it from progress"
        )


def seeded(run: Run) -> Iterator[str]:
    """Check that two equal steps are equal, and use no global random numbers."""
    methods, steps, consumed = (built(run), built(run)), [], []
    methods[1].load_state_dict(methods[0].state_dict())
    for number, method in enumerate(methods):
        seed_all(number)
        before = _global_states()
        steps.append(step(method))
        consumed = [name for name, state in _global_states().items() if state != before[name]]
    remedy = "draw with self.rng(progress.step), for the whole batch, and take distributed.own_rows"
    if consumed:
        yield f"a step draws from the global random numbers of {_listed(consumed)}, the same on every worker; {remedy}"
    elif wrong := _different(*steps):
        yield f"two equal steps differ in {_listed(wrong)}; {remedy}"


def finite(run: Run) -> Iterator[str]:
    """Check that the loss and its gradients are numbers in the worst cases."""
    for name, field in type(run.method.config).model_fields.items():
        if isinstance(getattr(run.method.config, name), float) and (
            "temperature" in name or any(isinstance(each, Gt) and each.gt == 0 for each in field.metadata)
        ):
            with suppress(ConfigError):  # the Config itself refuses this value
                cold = changed(run, {f"method.{name}": COLD})
                if not _is_finite(cold, lambda batch: batch):
                    yield (
                        f"with method.{name}={COLD:g} the loss or a gradient is not finite; use logsumexp or "
                        "cross_entropy, or declare the lowest value that works (Field(ge=…))"
                    )
    worst: dict[str, Callable[[Tensor], Tensor]] = {
        "black images": torch.zeros_like,
        "equal images": lambda x: x[:1].expand_as(x).clone(),
    }
    if wrong := [name for name, spoil in worst.items() if not _is_finite(run, partial(_with_images, spoil=spoil))]:
        yield (
            f"with {' and '.join(wrong)}, whose embeddings are equal, the loss or a gradient is not finite; "
            "normalise with F.normalize, and add an epsilon under roots and to variances"
        )


def same_picture(run: Run) -> Iterator[str]:
    """Check that a picture has images as the contract says, the same each time."""
    method = built(run).eval()
    images = torch.randn(5, *batch_image(method), dtype=torch.float64, generator=generator(2))
    made, again = (dict(method.picture(images)) for _ in range(2))
    channels, sizes = method.data.channels, {title: list(each.shape) for title, each in made.items()}
    if any(len(size) != 4 or size[1] != channels or size[2] != size[3] for size in sizes.values()):
        yield f"a picture has the shapes {sizes}; return [N, {channels}, s, s] for each title"
    if wrong := _different(made, again):
        yield f"two equal pictures differ in {_listed(wrong)}; draw with self.rng(0)"


def two_workers(run: Run) -> Iterator[str]:
    """Check that two workers take the step of one process."""
    yield from apart([run])[0]


def apart(runs: list[Run]) -> list[list[str]]:
    """Return the complaints of `two_workers` about several runs.

    To start two processes takes longer than a step.
    """
    workers = two_processes(steps_of, [run.file() for run in runs])
    return [list(_apart(step_of(run), [each[number] for each in workers])) for number, run in enumerate(runs)]


def steps_of(files: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """Return a worker's step of each run."""
    return [step_of(read_run(file)) for file in files]


def step_of(run: Run) -> dict[str, Tensor]:
    """Take one step, as one worker of a group or as a single process."""
    method = built(run)
    _begin_epoch(method, Progress(0, NOW.steps, 0, NOW.epochs))
    if distributed.world_size() == 1:
        return step(method)
    method = distributed.synchronise_batch_norm(method)
    assert isinstance(method, Method)
    return step(method, stepper=distributed.data_parallel(method))


def _apart(alone: dict[str, Tensor], workers: list[dict[str, Tensor]]) -> Iterator[str]:
    if not any(key.startswith("gradient") and value.abs().max() > 1e-6 for key, value in alone.items()):
        yield "a step has no gradient"
    for worker in workers:
        if wrong := _different(alone, worker, rtol=1e-6, atol=1e-7):  # statistics before an epoch may be float32
            yield (
                f"two workers do not compute what one does: {_listed(wrong)} differs; gather what is compared across "
                "images (blocks.distributed.gather), and draw random numbers for the whole batch (own_rows)"
            )
            return


CHECKS: dict[str, Check] = {
    "shapes": shapes,
    "encoder": kept_encoder,
    "stopped gradients": stopped_gradients,
    "resuming": resumable,
    "randomness": seeded,
    "finite numbers": finite,
    "picture": same_picture,
    "two workers": two_workers,
}


def _begin_epoch(method: Method, progress: Progress) -> None:
    images = torch.randn(INFO.samples, *batch_image(method), dtype=torch.float64, generator=generator(3))
    labelled = (torch.tensor([90, 91, 95, 99]), torch.tensor([0, 1, 1, 2])) if batch_of(method).labelled else None

    def embed() -> Tensor:
        features = method.eval().encode(images)
        method.train()
        return features

    with torch.no_grad():
        method.before_epoch(EpochView(embed, labelled, progress, lambda places: images[places].split(BATCH)))


def _with_images(batch: Batch, spoil: Callable[[Tensor], Tensor]) -> Batch:
    labelled = batch.labelled and replace(batch.labelled, views=[spoil(view) for view in batch.labelled.views])
    return replace(batch, views=[spoil(view) for view in batch.views], labelled=labelled)


def _is_finite(run: Run, spoiled: Callable[[Batch], Batch]) -> bool:
    method = built(run).float()
    batch = spoiled(batch_of(method))
    loss = method(_with_images(batch, Tensor.float), NOW).loss
    loss.backward()
    numbers = [loss, *(p.grad for p in method.parameters() if p.grad is not None)]
    return all(bool(torch.isfinite(each).all()) for each in numbers)


def _different(
    expected: dict[str, Tensor], found: dict[str, Tensor], rtol: float = 0.0, atol: float = 0.0
) -> list[str]:
    """Return the names of what differs; with no tolerance, in any bit."""
    names = [name for name in expected if name not in found or expected[name].shape != found[name].shape]
    return names or [
        name for name, value in expected.items() if not torch.allclose(value.double(), found[name].double(), rtol, atol)
    ]


def _loose(method: Method) -> dict[str, str]:
    """Return what modules hold besides parameters and buffers, as text."""
    kinds = (Tensor, torch.Generator, int, float, list, tuple, dict, deque)
    known = set(vars(nn.Module()))
    return {
        f"{path}.{name}".lstrip("."): str(value.get_state() if isinstance(value, torch.Generator) else value)
        for path, module in method.named_modules()
        for name, value in vars(module).items()
        if name not in known and isinstance(value, kinds)
    }


def _global_states() -> dict[str, str]:
    torch_state = torch.get_rng_state().numpy().tobytes().hex()
    return {"torch": torch_state, "numpy": str(np.random.get_state()), "random": str(random.getstate())}


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
