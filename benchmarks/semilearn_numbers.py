"""Write what the training steps of semilearn (USB) compute from fixed numbers, which a test compares ours with.

    pip install --no-deps semilearn==0.3.2
    python benchmarks/semilearn_numbers.py          # tests/methods/semilearn.json

Its algorithms run as they are, with their hooks, on a linear network in float64, four steps each. Weights stay, what an
algorithm remembers moves. Packages that it imports and these steps do not use are replaced by empty ones, and random
numbers by the given ones. `tests/methods/test_semilearn.py` says where ours differ, and why.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

FILE = Path(__file__).parents[1] / "tests/methods/semilearn.json"
UNUSED = (
    "aim",
    "progress",
    "ruamel",
    "skimage",
    "tensorboard",
    "torch.utils.tensorboard",
    "torchaudio",
    "transformers",
    "wandb",
)
STEPS, LABELLED, UNLABELLED, CLASSES, SAMPLES, WIDTH = 4, 8, 8, 3, 100, 5
SHAPE = (3, 2, 2)  # of an image
SHARE, EPSILON = 0.7, 2.0  # of an image in a mixture; length of VAT's change
METHODS = {  # semilearn's name: settings of its `init`, and the inputs of a step beside the labelled images
    "fixmatch": ({"T": 0.5, "p_cutoff": 0.6, "hard_label": True}, ("weak", "strong")),
    "pseudolabel": ({"p_cutoff": 0.6}, ("weak",)),
    "pimodel": ({}, ("weak", "strong")),
    "meanteacher": ({}, ("weak", "strong")),
    "vat": ({"vat_eps": EPSILON}, ("weak",)),
    "uda": ({"T": 1.0, "p_cutoff": 0.6}, ("weak", "strong")),
    "mixmatch": ({"T": 0.5, "mixup_alpha": 0.75}, ("weak", "strong")),
    "remixmatch": ({"T": 0.5, "mixup_alpha": 0.75}, ("weak", "strong", "third", "turned", "turns")),
    "flexmatch": ({"T": 0.5, "p_cutoff": 0.6, "hard_label": True, "thresh_warmup": True}, ("weak", "strong")),
    "freematch": (
        {"T": 0.5, "hard_label": True, "ema_p": 0.9, "use_quantile": False, "clip_thresh": False},
        ("weak", "strong"),
    ),
    "comatch": (
        {"T": 0.2, "p_cutoff": 0.6, "contrast_p_cutoff": 0.5, "queue_batch": 1, "smoothing_alpha": 0.9, "da_len": 3},
        ("weak", "strong", "third"),
    ),
    "softmatch": (
        {"T": 0.5, "hard_label": True, "dist_align": True, "dist_uniform": True, "ema_p": 0.9, "n_sigma": 2},
        ("weak", "strong"),
    ),
}


def numbers(step: int) -> dict[str, Tensor]:
    """Return the images of a step, normal numbers in float64, with labels, indices, and what is drawn at random."""
    draw = torch.Generator().manual_seed(step)

    def normal(count: int) -> Tensor:
        return torch.randn(count, *SHAPE, dtype=torch.float64, generator=draw)

    strong, turns = normal(UNLABELLED), torch.arange(UNLABELLED) % 4
    return {
        "labelled": normal(LABELLED),
        "targets": torch.randint(CLASSES, [LABELLED], generator=draw),
        "weak": normal(UNLABELLED),
        "strong": strong,
        "third": normal(UNLABELLED),
        "turned": torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(strong, turns, strict=True)]),
        "turns": turns,
        "direction": normal(UNLABELLED),
        "indices": torch.randperm(SAMPLES, generator=draw)[:UNLABELLED],
        "order": torch.randperm(LABELLED + 3 * UNLABELLED, generator=draw),
    }


def linear(outputs: int = CLASSES, seed: int = 100) -> nn.Linear:
    """Return a classifier of flattened images that is sure of some and not of others, or another linear layer."""
    draw = torch.Generator().manual_seed(seed)
    layer = nn.Linear(torch.Size(SHAPE).numel(), outputs).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(0.5 * torch.randn(p.shape, dtype=torch.float64, generator=draw))
    return layer


class Network(nn.Module):
    """A linear network with semilearn's interface."""

    def __init__(self):
        super().__init__()
        self.classifier, self.rotations, self.projector = linear(), linear(4, seed=101), linear(WIDTH, seed=103)

    def forward(self, images: Tensor, **_: Any) -> dict[str, Tensor]:
        pixels = images.flatten(1)
        embedded = nn.functional.normalize(self.projector(pixels))
        return {"logits": self.classifier(pixels), "feat": embedded, "logits_rot": self.rotations(pixels)}


class Teacher:
    """Another network's weights, in semilearn's interface of an average."""

    def __init__(self, network: Network):
        self.network, self.own = network, network.classifier

    def apply_shadow(self) -> None:
        self.network.classifier = linear(seed=102)

    def restore(self) -> None:
        self.network.classifier = self.own


class Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds empty modules for the packages that are not used."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if any(name == each or name.startswith(f"{each}.") for each in UNUSED):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = mock.MagicMock(name=spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave it empty."""


def algorithm(name: str) -> Any:
    """Return an algorithm of semilearn without its data, network and trainer, but with its hooks."""
    core = import_module("semilearn.core")
    settings, kind = METHODS[name][0], import_module("semilearn.algorithms").name2alg[name]
    one = kind.__new__(kind)
    sizes = {"num_classes": CLASSES, "ulb_dest_len": SAMPLES, "proj_size": WIDTH, "batch_size": LABELLED, "uratio": 1}
    one.args = types.SimpleNamespace(**settings, **sizes, per_class=False)
    one.num_classes, one.distributed, one.world_size, one.gpu, one.use_cat = CLASSES, False, 1, None, True
    one.num_train_iter, one.epoch = 1, 1  # all ramps are at their end
    one.lambda_u = one.lambda_ent = one.lambda_kl = one.lambda_rot = one.lambda_e = one.lambda_c = 1.0
    one.use_rot, one.tsa_schedule = True, "none"
    one.dataset_dict = {"train_lb": types.SimpleNamespace(targets=[0, 1, 2])}
    one.amp_cm, one.bn_controller, one.model = nullcontext, mock.Mock(), Network()
    losses = import_module("semilearn.core.criterions")
    one.ce_loss, one.consistency_loss, one.ema = losses.CELoss(), losses.ConsistencyLoss(), Teacher(one.model)
    one._hooks, one.hooks_dict = [], {}
    with mock.patch.object(core.algorithmbase.AlgorithmBase, "set_hooks"):  # those of the trainer
        one.set_hooks()
    named = {key: value for key, value in settings.items() if key in one.init.__code__.co_varnames}
    with on_cpu():
        one.init(**named)
    return one


def on_cpu() -> Any:
    """Keep tensors from being moved to a GPU."""
    return mock.patch.object(Tensor, "cuda", lambda self, *_: self)


@contextmanager
def given(drawn: dict[str, Tensor]) -> Iterator[None]:
    """Replace random numbers by given ones."""
    with (
        mock.patch("numpy.random.beta", return_value=SHARE),
        mock.patch("torch.randperm", lambda size, **_: order(drawn, size)),
        mock.patch.object(Tensor, "normal_", lambda self: self.copy_(drawn["direction"])),
    ):
        yield


def order(drawn: dict[str, Tensor], size: int) -> Tensor:
    """Return a permutation of `size` images."""
    return drawn["order"][drawn["order"] < size]


def steps(name: str) -> list[dict[str, Any]]:
    """Return the loss of each step, and its gradient with respect to the classifier's weights."""
    one, (_, inputs), found = algorithm(name), METHODS[name], []
    for step in range(STEPS):
        drawn = numbers(step)
        images = [drawn[each].clone() for each in inputs]
        if name == "flexmatch":
            images.insert(0, drawn["indices"])
        one.it = step + 1
        with given(drawn), on_cpu():
            result, _ = one.train_step(drawn["labelled"], drawn["targets"], *images)
        weights = one.model.classifier.weight
        (gradient,) = torch.autograd.grad(result["loss"], weights)
        weights.grad = None
        found.append({"loss": result["loss"].item(), "gradient": gradient.tolist()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FILE)
    out = parser.parse_args().out
    sys.meta_path.insert(0, Unused())
    torch.set_default_dtype(torch.float64)
    out.write_text(json.dumps({name: steps(name) for name in METHODS}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
