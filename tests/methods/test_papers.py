"""What methods take over from their papers, views of photos and heads, against lightly's of the same papers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightly import transforms as lightly
from lightly.models.modules import heads
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.solarize import RandomSolarization
from torch import nn
from torchvision.transforms import v2 as T

from eagleray.augment import View
from eagleray.config import load_run
from eagleray.contracts.method import Method
from eagleray.runs.assemble import build_method
from method_cases import INFO

PHOTOS = replace(INFO, image_size=224, samples=100_000, batch_size=256)
SIMCLR, BYOL = lightly.SimCLRTransform().transforms, lightly.BYOLTransform().transforms
FIRST = lightly.MoCoV1Transform(cj_prob=1.0).transforms  # the authors jitter every image
PAPERS = {
    "simclr": SIMCLR,
    "dcl": SIMCLR,
    "triplet": SIMCLR,
    "simclr_v2": SIMCLR,
    "npid": FIRST[:1],
    "moco method.version=1": FIRST,
    "moco": lightly.MoCoV2Transform().transforms,
    "moco_v3": BYOL,
    "nnclr": BYOL,
    "swav": lightly.SwaVTransform().transforms,
    "byol": BYOL,
    "simsiam": lightly.SimSiamTransform().transforms,
    "dino method.local_crops=6 method.crop_split=0.4": lightly.DINOTransform().transforms,  # ours are of a longer run
    "ibot": lightly.IBOTTransform().transforms,
    "msn": lightly.MSNTransform(cj_strength=0.5).transforms,  # of the authors' configuration
    "mmcr method.views=4": [*BYOL, *BYOL],  # as the authors' code for ImageNet; lightly's are all of the first kind
    "barlow_twins": BYOL,
    "vicreg": lightly.VICRegTransform().transforms,
    "w_mse": lightly.WMSETransform(gaussian_blur=0.0).transforms,  # of CIFAR-10
}


def of_the_paper(method: str, *settings: str) -> Method:
    """Build a method without memory for its weights: only kinds and sizes are compared, and a head has half a GB."""
    with torch.device("meta"):
        return build_method(load_run(None, [*f"method={method}".split(), "recipe=paper", *settings]), PHOTOS)


@pytest.mark.parametrize("method", PAPERS)
def test_views_of_photos_are_those_of_the_paper(method: str):
    assert [described(view) for view in of_the_paper(method).views] == [seen(view) for view in PAPERS[method]]


def without_last_bias(head: nn.Module) -> nn.Module:
    list(head.modules())[-1].bias = None  # the authors' code has none
    return head


OF_256 = ["encoder.width=32", "encoder.grid=1", "encoder.last=1"]  # 256 features
HEADS = {  # of an encoder of `OF_256`
    ("simclr", "projector"): lambda: heads.SimCLRProjectionHead(256, 2048, 128),
    ("dcl", "projector"): lambda: heads.SimCLRProjectionHead(256, 2048, 128),
    ("simclr_v2", "projector"): lambda: heads.SimCLRProjectionHead(256, 2048, 128, num_layers=3),
    ("moco", "projector"): lambda: heads.MoCoProjectionHead(256, 2048, 128),
    ("nnclr", "projector"): lambda: heads.NNCLRProjectionHead(256, 2048, 256),
    ("nnclr", "predictor"): lambda: heads.NNCLRPredictionHead(256, 4096, 256),
    ("swav", "projector"): lambda: heads.SwaVProjectionHead(256, 2048, 128),
    ("byol", "projector"): lambda: heads.BYOLProjectionHead(256, 4096, 256),
    ("byol", "predictor"): lambda: heads.BYOLPredictionHead(256, 4096, 256),
    ("simsiam", "projector"): lambda: heads.SimSiamProjectionHead(256, 2048, 2048),
    ("simsiam", "predictor"): lambda: heads.SimSiamPredictionHead(2048, 512, 2048),
    ("dino", "head"): lambda: heads.DINOProjectionHead(256, 2048, 256, 65536),
    ("barlow_twins", "projector"): lambda: without_last_bias(heads.BarlowTwinsProjectionHead(256, 8192, 8192)),
    ("vicreg", "projector"): lambda: without_last_bias(heads.VICRegProjectionHead(256, 8192, 8192, num_layers=3)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")  # in lightly's DINO
@pytest.mark.parametrize(("method", "part"), HEADS)
def test_heads_are_those_of_the_paper(method: str, part: str):
    with torch.device("meta"):
        theirs = HEADS[method, part]()
    assert layers(getattr(of_the_paper(method, *OF_256), part)) == layers(theirs)


def layers(head: nn.Module) -> list[tuple[Any, ...]]:
    """Kinds and sizes of a head's layers."""
    found: list[tuple[Any, ...]] = []
    for layer in head.modules():
        match layer:
            case nn.Linear():
                found.append(("linear", layer.in_features, layer.out_features, layer.bias is not None))
            case nn.BatchNorm1d():
                found.append(("norm", layer.num_features, layer.affine))
            case nn.ReLU() | nn.GELU():
                found.append((type(layer).__name__,))
    return found


def described(view: View) -> dict[str, Any]:
    """A view of ours in the words of `seen`."""
    assert not any([view.shift, view.rotate, view.randaugment, view.cutout])
    return {
        "size": view.size or PHOTOS.image_size,
        "crop": view.crop,
        "flip": view.flip,
        "jitter": pytest.approx([view.jitter * scale for scale in view.jitter_scale]),
        "jitter_probability": view.jitter_probability,
        "grayscale": view.grayscale,
        "blur": view.blur,
        "solarize": view.solarize,
    }


def seen(transform: Any) -> dict[str, Any]:
    """What lightly's transform of one view does to an image."""
    found: dict[str, Any] = {"blur": 0.0, "solarize": 0.0}
    for probability, part in leaves(transform):
        match part:
            case T.RandomResizedCrop():
                found |= {"size": part.size[0], "crop": tuple(part.scale)}
            case T.RandomHorizontalFlip():
                found["flip"] = part.p
            case T.ColorJitter() if part.brightness:  # its SwAV has an empty one too
                shades = [part.brightness, part.contrast, part.saturation]
                found["jitter"] = [*(high - 1 for _, high in shades), part.hue[1]]
                found["jitter_probability"] = probability
            case T.RandomGrayscale():
                found["grayscale"] = part.p
            case GaussianBlur():
                found["blur"] = part.prob
            case RandomSolarization():
                found["solarize"] = part.prob
    return found


def leaves(transform: Any, probability: float = 1.0) -> Iterator[tuple[float, Any]]:
    """The operations of a transform, each with the probability that what holds it is applied."""
    if isinstance(transform, T.Compose | T.RandomApply):
        for part in transform.transforms:
            yield from leaves(part, transform.p if isinstance(transform, T.RandomApply) else probability)
    elif not isinstance(transform, T.Transform) and hasattr(transform, "transform"):  # lightly's, around torchvision's
        yield from leaves(transform.transform, probability)
    else:
        yield probability, transform


VIT = "encoder=vit_tiny"
ADAM = {"weight_decay": 0.0, "warmup_epochs": 0.0}
BEIT = {"weight_decay": 0.05, "warmup_epochs": 10, "clip": 3.0}
TRAINING = {  # of the authors' code: a batch, the rate at it, what else the optimizer does, and the method's settings
    f"maskfeat {VIT}": (2048, 1.6e-3, {"weight_decay": 0.05, "warmup_epochs": 30, "clip": 0.02, "final_lr": 0.0},
        {"mask_ratio": 0.4, "window": True}),
    f"simmim {VIT}": (2048, 4e-4, {"weight_decay": 0.05, "warmup_epochs": 10, "clip": 5.0, "drops": (0.875,)},
        {"mask_ratio": 0.6}),
    f"data2vec {VIT}": (2048, 2e-3, {**BEIT, "final_lr": 0.005},
        {"mask_ratio": 0.61, "blocks": None, "beta": 2.0, "momentum": 0.9998}),
    f"patch_bert {VIT}": (2048, 1.5e-3, {**BEIT, "final_lr": 0.0067}, {"mask_ratio": 0.4}),
    f"ijepa {VIT}": (2048, 1e-3,
        {"weight_decay": 0.04, "final_weight_decay": 0.4, "warmup_epochs": 40, "final_lr": 0.001, "clip": None},
        {"targets": 4, "min_context": 10, "predictor_dim": 384, "predictor_depth": 12, "momentum": 0.996}),
    f"msn {VIT}": (1024, 1e-3,
        {"weight_decay": 0.04, "final_weight_decay": 0.4, "warmup_epochs": 15, "final_lr": 0.001, "clip": 3.0},
        {"mask_ratio": 0.15, "prototypes": 1024, "temperature": 0.1, "sharpening": 0.25, "momentum": 0.996,
         "entropy_weight": 1.0, "iterations": 3, "hidden": 2048, "bottleneck": 256, "local_crops": 10}),
    "lejepa": (256, 5e-4, {"weight_decay": 0.05, "warmup_epochs": 1, "final_lr": 0.001},
        {"weight": 0.05, "directions": 1024, "hidden": 2048, "projection": 64, "local_crops": 6}),
    "mmcr": (2048, 4.8, {"name": "lars", "weight_decay": 1e-6, "warmup_epochs": 10, "final_lr": 0.001},
        {"hidden": 8192, "projection": 512}),
    "ebgan": (64, 2e-4, {**ADAM, "momentum": 0.5, "final_lr": 1.0}, {"repelling": 0.1, "latent": 100}),
    "bigan": (128, 2e-4, {"weight_decay": 2.5e-5, "momentum": 0.5, "final_lr": 0.01},
        {"latent": 200, "hidden": 1024, "discriminator_rate": 1.0}),
}  # fmt: skip
OURS = {  # papers that train otherwise
    "vae": (128, 1e-3, ADAM, {"latent": 64, "beta": 1.0, "deviation": 0.3}),
    "denoising_autoencoder": (128, 1e-3, ADAM, {"corruption": "masking", "share": 0.25, "noise": 0.3}),
    "kmeans_features": (128, 4.0, {"name": "sgd", "weight_decay": 0.0, "momentum": 0.0}, {}),
    "sparse_coding": (128, 1e-3, ADAM, {"sparsity": 1.0, "prediction": 1.0, "iterations": 20}),
}  # fmt: skip


@pytest.mark.parametrize("method", [*TRAINING, *OURS])
def test_rates_and_settings_are_those_of_the_paper_or_ours(method: str):
    batch, rate, optimizer, config = (TRAINING | OURS)[method]
    run = load_run(None, [*f"method={method}".split(), "recipe=paper"])
    assert run.optimizer.peak_lr(batch) == pytest.approx(rate, rel=0.02)
    for expected, found in (({"name": "adamw", **optimizer}, run.optimizer), (config, run.method.config)):
        assert {name: getattr(found, name) for name in expected} == expected


MASKED = {"crop": (0.08, 1.0), "flip": 0.5, "interpolation": "bicubic"}
BEIT_S = View(**MASKED, jitter=1.0, jitter_scale=(0.4, 0.4, 0.4, 0.0), jitter_probability=1.0)
VIEWS = {  # of papers whose views lightly does not have
    f"maskfeat {VIT}": View(**{**MASKED, "crop": (0.5, 1.0)}),
    f"simmim {VIT}": View(crop=(0.67, 1.0), flip=0.5),
    f"data2vec {VIT}": BEIT_S,
    f"patch_bert {VIT}": BEIT_S,
    f"ijepa {VIT}": View(crop=(0.3, 1.0), flip=0.0),
    "ebgan": View(flip=0.5),
    "bigan": View(shift=1 / 16, flip=0.5),
    "vae": View(),
    "denoising_autoencoder": View(),
}


@pytest.mark.parametrize("method", VIEWS)
def test_the_one_view_is_that_of_the_paper(method: str):
    assert of_the_paper(method).views == (VIEWS[method],)


def test_lejepa_s_views_are_those_of_the_authors_page():
    """Two large ones and six small ones, all changed in the same way."""
    change = {"flip": 0.5, "jitter": 1.0, "jitter_scale": (0.4, 0.4, 0.2, 0.1), "jitter_probability": 0.8}
    change |= {"grayscale": 0.2, "blur": 0.5, "solarize": 0.2}
    small = [View(size=96, crop=(0.05, 0.3), **change)] * 6
    assert list(of_the_paper("lejepa").views) == [*[View(crop=(0.3, 1.0), **change)] * 2, *small]


@pytest.mark.parametrize(
    ("method", "part", "sizes"),
    [
        ("lejepa", "projector", [256, 2048, 2048, 64]),
        ("mmcr", "projector", [256, 8192, 8192, 512]),
        (f"msn {VIT}", "head", [192, 2048, 2048, 256]),
    ],
)
def test_heads_that_lightly_lacks_have_norms_between_their_layers(method: str, part: str, sizes: list[int]):
    made = of_the_paper(method, *([] if VIT in method else OF_256))
    found = layers(getattr(made, part))
    linear = [layer for layer in found if layer[0] == "linear"]
    assert [linear[0][1], *(layer[2] for layer in linear)][: len(sizes)] == sizes
    hidden = len(sizes) - 2
    assert [layer[1] for layer in found if layer[0] == "norm"][:hidden] == sizes[1:-1]
