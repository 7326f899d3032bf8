"""Compare with lightly at the same budget: its heads, losses and transforms with our encoder, data and evaluation.

    python benchmarks/against_lightly.py --images FOLDER [--methods simclr byol] [--epochs 10] [--seeds 2] [--out X.csv]

Encoder, initial weights, images, split, batch, optimizer, schedule, precision, widths and temperatures are those of
`eagleray train method=NAME`, on a GPU if there is one. From lightly come the parts of the method: the views (PIL, one
image at a time), the heads and the loss. The same code evaluates both. Each run gives a row: method, seed, kNN and
linear probe on the validation set.
"""

import argparse
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightly import loss as losses
from lightly import transforms
from lightly.models.modules import NNMemoryBankModule, heads
from lightly.models.utils import random_block_mask, random_token_mask, update_momentum
from rows import written
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

from eagleray.blocks.losses import precise
from eagleray.blocks.masking import take
from eagleray.blocks.networks import encode_crops
from eagleray.blocks.optimizers import make_optimizer, set_rates
from eagleray.blocks.schedules import cosine
from eagleray.config import Run, load_run
from eagleray.contracts.batch import Progress
from eagleray.contracts.encoder import Encoder, TokenEncoder
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.data.images import Data, Images
from eagleray.data.loader import BatchLoader
from eagleray.runs.assemble import build_method, fitted, images_of
from eagleray.runs.device import autocast_for, pick_device
from eagleray.runs.evaluation import Evaluation

Transform = Callable[..., Any]  # of a PIL image, to a list of tensors


class Theirs(nn.Module):
    """A method built from lightly's parts, with the settings of ours."""

    encoder: Encoder

    def __init__(self, ours: Method):
        super().__init__()
        self.encoder, self.settings, self.dim = ours.encoder, ours.config, ours.encoder.dim
        self.ours = [ours]  # in a list, so that its parameters are not these
        self.local_size = getattr(ours, "local_size", 0)  # of small crops, if the method has them
        self.build(ours.config)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the parameter groups of our method, with the parts of the same names here."""
        names = {module: name for name, module in self.ours[0].named_modules()}
        return [replace(g, module=self.get_submodule(names[g.module])) for g in self.ours[0].parameter_groups()]

    def build(self, c: Any) -> None:
        """Build heads and loss."""
        raise NotImplementedError

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        """Return the loss of one step."""
        raise NotImplementedError

    def before_step(self, now: Progress) -> None:
        """Set some gradients to zero, if the method does."""

    def after_step(self, now: Progress) -> None:
        """Update the teacher, if there is one."""

    @property
    def evaluated(self) -> Encoder:
        """The trained encoder."""
        return self.encoder

    def transform(self, **shared: Any) -> Transform:
        """Return lightly's views with a size and normalisation; like ours, small images are not blurred."""
        return transforms.SimCLRTransform(cj_strength=0.5, **shared)


class SimCLR(Theirs):
    def build(self, c: Any) -> None:
        self.projector = heads.SimCLRProjectionHead(self.dim, c.hidden, c.projection)
        self.criterion = losses.NTXentLoss(temperature=c.temperature)

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        return self.criterion(*self.projector(self.encoder(torch.cat(views))).chunk(2))


class DCL(SimCLR):
    def build(self, c: Any) -> None:
        super().build(c)
        self.criterion = losses.DCLLoss(temperature=c.temperature)


class BYOLViews(Theirs):
    def transform(self, **shared: Any) -> Transform:
        first = transforms.BYOLView1Transform(min_scale=0.2, **shared)
        return transforms.BYOLTransform(first, transforms.BYOLView2Transform(min_scale=0.2, **shared))


class BYOL(BYOLViews):
    def build(self, c: Any) -> None:
        self.projector = heads.BYOLProjectionHead(self.dim, c.hidden, c.projection)
        if c.last_norm:
            self.projector.layers.append(nn.BatchNorm1d(c.projection))
        self.predictor = heads.BYOLPredictionHead(c.projection, c.hidden, c.projection)
        self.student = nn.Sequential(self.encoder, self.projector)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.criterion = losses.NegativeCosineSimilarity()

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        first, second = (self.predictor(self.student(view)) for view in views)
        with torch.no_grad():
            targets = [self.teacher(view) for view in views]
        return 2 * (self.criterion(first, targets[1]) + self.criterion(second, targets[0]))

    def after_step(self, now: Progress) -> None:
        update_momentum(self.student, self.teacher, m=cosine(self.settings.momentum, 1.0, now.fraction))


class SimSiam(Theirs):
    def build(self, c: Any) -> None:
        self.projector = heads.SimSiamProjectionHead(self.dim, c.hidden, c.projection)
        self.predictor = heads.SimSiamPredictionHead(c.projection, c.bottleneck, c.projection)
        self.criterion = losses.NegativeCosineSimilarity()

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        z = [self.projector(self.encoder(view)) for view in views]
        p = [self.predictor(each) for each in z]
        return (self.criterion(p[0], z[1].detach()) + self.criterion(p[1], z[0].detach())) / 2

    def transform(self, **shared: Any) -> Transform:
        return transforms.SimSiamTransform(**shared)


class MoCo(Theirs):
    def build(self, c: Any) -> None:
        self.student = nn.Sequential(self.encoder, heads.MoCoProjectionHead(self.dim, c.hidden, c.projection))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.criterion = losses.NTXentLoss(temperature=0.2, memory_bank_size=(c.queue, c.projection))

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        # Their example shuffles the keys, which changes nothing within one batch norm.
        with torch.no_grad():
            keys = self.teacher(views[1])
        return self.criterion(self.student(views[0]), keys)

    def after_step(self, now: Progress) -> None:
        update_momentum(self.student, self.teacher, m=self.settings.momentum)

    def transform(self, **shared: Any) -> Transform:
        return transforms.MoCoV2Transform(**shared)


class NNCLR(BYOLViews):
    def build(self, c: Any) -> None:
        self.projector = heads.NNCLRProjectionHead(self.dim, c.hidden, c.projection)
        self.predictor = heads.NNCLRPredictionHead(c.projection, c.predictor_hidden, c.projection)
        self.bank = NNMemoryBankModule(size=(c.queue, c.projection))
        self.criterion = losses.NTXentLoss(temperature=c.temperature)

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        z = [self.projector(self.encoder(view)) for view in views]
        p = [self.predictor(each) for each in z]
        near = self.bank(z[0].detach(), update=False), self.bank(z[1].detach(), update=True)
        return (self.criterion(near[0], p[1]) + self.criterion(near[1], p[0])) / 2


class BarlowTwins(BYOLViews):
    def build(self, c: Any) -> None:
        self.projector = heads.BarlowTwinsProjectionHead(self.dim, c.hidden, c.projection)
        self.criterion = losses.BarlowTwinsLoss(lambda_param=c.redundancy)

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        return self.criterion(*(self.projector(self.encoder(view)) for view in views))


class VICReg(Theirs):
    def build(self, c: Any) -> None:
        self.projector = heads.VICRegProjectionHead(self.dim, c.hidden, c.projection)
        self.criterion = losses.VICRegLoss(c.invariance, c.variance, c.covariance)

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        return self.criterion(*(self.projector(self.encoder(view)) for view in views))

    def transform(self, **shared: Any) -> Transform:
        return transforms.VICRegTransform(min_scale=0.2, **shared)


class WMSE(Theirs):
    def build(self, c: Any) -> None:
        layers = [(self.dim, c.hidden, nn.BatchNorm1d(c.hidden), nn.ReLU()), (c.hidden, c.projection, None, None)]
        self.projector = heads.ProjectionHead(layers)
        self.criterion = losses.WMSELoss(
            c.projection, eps=c.shrinkage, w_iter=c.iterations, w_size=c.sub_batch, num_samples=c.views
        )

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        return self.criterion(self.projector(self.encoder(torch.cat(views))))

    def transform(self, **shared: Any) -> Transform:
        return transforms.WMSETransform(num_samples=self.settings.views, **shared)


class SwAV(Theirs):
    def build(self, c: Any) -> None:
        assert not c.queue, "the small recipe has no queue"
        self.projector = heads.SwaVProjectionHead(self.dim, c.hidden, c.projection)
        self.prototypes = heads.SwaVPrototypes(c.projection, c.prototypes)
        self.criterion = losses.SwaVLoss(c.temperature, c.iterations, c.epsilon)

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        self.prototypes.normalize()
        z = F.normalize(self.projector(encode_crops(self.encoder, views)), dim=1)
        scores = self.prototypes(z).chunk(len(views))
        return self.criterion(scores[:2], scores[2:])

    def before_step(self, now: Progress) -> None:
        if now.epochs_done < self.settings.frozen_epochs:
            self.prototypes.zero_grad()

    def transform(self, **shared: Any) -> Transform:
        c, size = self.settings, shared.pop("input_size")
        return transforms.SwaVTransform(
            (size, self.local_size), (2, c.local_crops), (c.crop_split, 0.1), (1.0, c.crop_split), cj_strength=0.5,
            **shared,
        )  # fmt: skip


class DINO(Theirs):
    student: Any
    teacher: Any

    def build(self, c: Any) -> None:
        self.student = nn.Sequential(self.encoder, self.head(c))
        self.teacher = nn.Sequential(copy.deepcopy(self.encoder), self.head(c))
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.criterion = losses.DINOLoss(
            c.prototypes, c.teacher_temperature, c.teacher_temperature, 1, c.temperature, c.centre_momentum
        )

    def head(self, c: Any) -> nn.Module:
        head = heads.DINOProjectionHead(
            self.dim, c.hidden, c.bottleneck, c.prototypes, batch_norm=c.norm, freeze_last_layer=1
        )
        if c.last_norm:
            head.layers.append(nn.BatchNorm1d(c.bottleneck))
        return head

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        with torch.no_grad():
            targets = self.teacher(torch.cat(views[:2]))
        logits = self.student[1](encode_crops(self.encoder, views))
        return self.criterion(list(targets.chunk(2)), list(logits.chunk(len(views))), epoch=now.epoch)

    def before_step(self, now: Progress) -> None:
        self.student[1].cancel_last_layer_gradients(now.epoch)

    def after_step(self, now: Progress) -> None:
        update_momentum(self.student, self.teacher, m=cosine(self.settings.momentum, 1.0, now.fraction))

    @property
    def evaluated(self) -> Encoder:
        return self.teacher[0]

    def transform(self, **shared: Any) -> Transform:
        return dino_views(self, **shared)


def dino_views(theirs: Theirs, **shared: Any) -> Transform:
    """Return lightly's large and small crops."""
    c, size, blur = theirs.settings, shared.pop("input_size"), (shared.pop("gaussian_blur"),) * 3
    large, small = (c.crop_split, 1.0), (0.1, c.crop_split)
    return transforms.DINOTransform(size, large, theirs.local_size, small, c.local_crops, gaussian_blur=blur, **shared)


class IBOT(DINO):
    """Classes as in DINO, and the patches that blocks hide: lightly's masks, head and losses on our ViT."""

    encoder: TokenEncoder

    def build(self, c: Any) -> None:
        super().build(c)
        self.mask_token = nn.Parameter(torch.zeros(self.dim))
        self.patch_criterion = losses.IBOTPatchLoss(
            c.prototypes, c.teacher_temperature, c.temperature, center_momentum=c.centre_momentum
        )

    def head(self, c: Any) -> nn.Module:
        return heads.DINOProjectionHead(self.dim, c.hidden, c.bottleneck, c.prototypes, freeze_last_layer=1)

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        c, encoder, (teacher, teacher_head), large = self.settings, self.encoder, self.teacher, torch.cat(views[:2])
        size, shares = (len(large), encoder.grid, encoder.grid), (c.mask_probability, c.mask_min, c.mask_max)
        mask = random_block_mask(size, *shares).to(large.device)
        hidden = mask.flatten(1)
        with torch.no_grad():
            seen = teacher.tokens(teacher.patches(large))
            targets, patch_targets = teacher_head(seen[:, 0]), teacher_head(seen[:, 1:][hidden])
        tokens = encoder.tokens(encoder.patches(large, hidden, self.mask_token))
        small = encoder.tokens(encoder.patches(torch.cat(views[2:])))
        logits = self.student[1](torch.cat([tokens[:, 0], small[:, 0]]))
        patch_logits = self.student[1](tokens[:, 1:][hidden])
        classes = self.criterion(list(targets.chunk(2)), list(logits.chunk(len(views))), epoch=now.epoch)
        return classes + c.patch_weight * self.patch_criterion(patch_targets, patch_logits, mask)


class MSN(Theirs):
    """Lightly's masks, head, views and loss on our ViT; the teacher's momentum rises as ours."""

    encoder: TokenEncoder

    def build(self, c: Any) -> None:
        self.head: Any = nn.Module()
        self.head.layers = heads.MSNProjectionHead(self.dim, c.hidden, c.bottleneck)
        self.head.prototypes = nn.Linear(c.bottleneck, c.prototypes, bias=False)
        self.teacher, self.teacher_layers = copy.deepcopy(self.encoder), copy.deepcopy(self.head.layers)
        nn.ModuleList([self.teacher, self.teacher_layers]).requires_grad_(False)
        self.criterion = losses.MSNLoss(c.temperature, c.iterations, c.entropy_weight)

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        (whole, masked, *small), encoder = views, self.encoder
        kept, _ = random_token_mask((len(masked), 1 + encoder.grid**2), self.settings.mask_ratio, device=masked.device)
        tokens = encoder.tokens(take(encoder.patches(masked), kept[:, 1:] - 1))  # theirs count the class token
        classes = [tokens[:, 0], encode_crops(lambda crops: encoder.tokens(encoder.patches(crops))[:, 0], small)]
        anchors = torch.cat([self.head.layers(each) for each in classes])
        with torch.no_grad():
            targets = self.teacher_layers(self.teacher.tokens(self.teacher.patches(whole))[:, 0])
        return self.criterion(anchors, targets, self.head.prototypes.weight, self.settings.sharpening)

    def after_step(self, now: Progress) -> None:
        momentum = self.settings.momentum + (1 - self.settings.momentum) * now.fraction
        update_momentum(self.encoder, self.teacher, m=momentum)
        update_momentum(self.head.layers, self.teacher_layers, m=momentum)

    @property
    def evaluated(self) -> Encoder:
        return self.teacher

    def transform(self, **shared: Any) -> Transform:
        c, size = self.settings, shared.pop("input_size")
        scales = {"random_crop_scale": (c.crop_split, 1.0), "focal_crop_scale": (0.1, c.crop_split)}
        return transforms.MSNTransform(size, self.local_size, 2, c.local_crops, cj_strength=0.5, **scales, **shared)


class MMCR(Theirs):
    """With lightly's teacher, whose embeddings join the mean; ours, as the paper, has none."""

    def build(self, c: Any) -> None:
        self.student = nn.Sequential(self.encoder, projector(self.dim, c))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.criterion = losses.MMCRLoss()

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        images = torch.cat(views)
        with torch.no_grad():
            taught = self.teacher(images)
        parts = (F.normalize(z, dim=1).unflatten(0, (len(views), -1)) for z in (self.student(images), taught))
        return self.criterion(*(z.transpose(0, 1) for z in parts))

    def after_step(self, now: Progress) -> None:
        update_momentum(self.student, self.teacher, m=cosine(0.996, 1.0, now.fraction))

    def transform(self, **shared: Any) -> Transform:
        return transforms.MMCRTransform(k=self.settings.views, min_scale=0.2, **shared)


class LeJEPA(Theirs):
    def build(self, c: Any) -> None:
        self.projector = projector(self.dim, c)
        self.criterion = losses.LeJEPALoss(c.weight, sigreg_num_vectors=c.directions)

    def loss(self, views: list[Tensor], now: Progress) -> Tensor:
        z = self.projector(encode_crops(self.encoder, views)).unflatten(0, (len(views), -1))
        return self.criterion(local_proj=z[2:], global_proj=z[:2])

    def transform(self, **shared: Any) -> Transform:
        return dino_views(self, **shared)


def projector(dim: int, c: Any) -> nn.Module:
    """Return lightly's head with two hidden layers."""
    hidden = [(width, c.hidden, nn.BatchNorm1d(c.hidden), nn.ReLU()) for width in (dim, c.hidden)]
    return heads.ProjectionHead([*hidden, (c.hidden, c.projection, None, None)])


METHODS: dict[str, type[Theirs]] = {
    "simclr": SimCLR, "dcl": DCL, "byol": BYOL, "simsiam": SimSiam, "moco": MoCo, "nnclr": NNCLR,
    "barlow_twins": BarlowTwins, "vicreg": VICReg, "w_mse": WMSE, "swav": SwAV, "dino": DINO, "ibot": IBOT,
    "msn": MSN, "mmcr": MMCR, "lejepa": LeJEPA,
}  # fmt: skip


# Where it is not the default: as in sweeps/methods.yaml.
VIT = ["encoder=vit_tiny", "encoder.depth=4", "encoder.dim=128"]
ENCODERS = {"ibot": VIT, "msn": VIT}


class InFloat(nn.Module):
    """A loss or memory bank of lightly outside of bf16 autocast; our losses leave autocast themselves."""

    def __init__(self, part: nn.Module, device: torch.device):
        super().__init__()
        self.part, self.device_type = part, device.type

    def forward(self, *arguments: Any, **others: Any) -> Any:
        with torch.autocast(self.device_type, enabled=False):
            return self.part(*tree_map_only(Tensor, _in_float, arguments), **others)


def _in_float(x: Tensor) -> Tensor:
    return precise(x) if x.is_floating_point() else x


class Viewed(Dataset[list[Tensor]]):
    """The training images with a transform of lightly."""

    def __init__(self, images: Images, transform: Transform):
        self.pixels = next(images.batches([torch.arange(len(images))]))  # uint8 [N, C, H, W]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, place: int) -> list[Tensor]:
        return self.transform(to_pil_image(self.pixels[place]))


def train(run: Run, data: Data) -> dict[str, float]:
    """Train a run with lightly's parts, and evaluate it like a run of ours."""
    random.seed(run.seed)  # draws iBOT's masks
    info = fitted(run, data.info)
    device = pick_device(run.device)
    ours = build_method(run, info)
    loader = BatchLoader(run, data, info, ours, device)
    ours.encoder.to(memory_format=loader.layout)
    theirs = METHODS[run.method.name](ours).to(device).train()
    for name, part in list(theirs.named_children()):
        if type(part).__module__.startswith(("lightly.loss", "lightly.models.modules.nn_memory_bank")):
            setattr(theirs, name, InFloat(part, device))
    autocast = autocast_for(run.precision, device)
    normalise = {"mean": list(info.mean), "std": list(info.std)}
    transform = theirs.transform(input_size=info.image_size, gaussian_blur=0.0, normalize=normalise)
    their_loader = DataLoader(
        Viewed(data.train, transform),
        run.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=1,
        persistent_workers=True,
        generator=torch.Generator().manual_seed(run.seed),
    )
    optimizer: Any = make_optimizer(theirs, run.optimizer)  # pyright: ignore[reportArgumentType]
    for step, (epoch, views) in enumerate(_epochs(their_loader, run.epochs)):
        now = Progress(step, len(their_loader) * run.epochs, epoch, run.epochs)
        set_rates(optimizer, run.optimizer, run.batch_size, now)
        with autocast:
            loss = theirs.loss([view.to(device, memory_format=loader.layout) for view in views], now)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if run.optimizer.clip is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), run.optimizer.clip)
        theirs.before_step(now)
        optimizer.step()
        theirs.after_step(now)
    encoder = theirs.evaluated.eval()
    return Evaluation(run, data, loader, lambda: build_method(run, info).to(device)).measure(
        encoder, autocast, test=False
    )


def _epochs(loader: DataLoader[list[Tensor]], epochs: int) -> Iterator[tuple[int, list[Tensor]]]:
    for epoch in range(epochs):
        for views in loader:
            yield epoch, views


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a folder of images with classes")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=int, help="train on this many images only")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with written(a.out, "method", "seed", "knn", "linear") as add:
        for name in a.methods:
            for seed in range(a.seeds):
                settings = [f"method={name}", "data=folder", f"data.root={a.images}", f"seed={seed}",
                            f"epochs={a.epochs}", f"batch_size={a.batch}", *ENCODERS.get(name, [])]  # fmt: skip
                settings += [f"data.limit={a.limit}"] if a.limit else []
                run = load_run(None, settings)
                metrics = train(run, images_of(run))
                add(name, seed, metrics["knn"], metrics["linear"])


if __name__ == "__main__":
    main()
