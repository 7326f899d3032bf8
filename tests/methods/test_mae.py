"""MAE: its authors' whole network, written out slowly, gets the same loss, picture and gradients from our weights."""

import math
from dataclasses import replace

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from eagleray.augment import View
from eagleray.blocks.masking import patchify
from eagleray.blocks.optimizers import make_optimizer
from eagleray.config import load_run
from eagleray.contracts.batch import Batch, DataInfo
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.method import Method
from eagleray.contracts.recipe import Recipe
from eagleray.runs.assemble import build_method
from method_cases import INFO, NOW, batch_of, small

# --- the authors' network: models_mae.py of facebookresearch/mae, told step by step ------------------------


class Attention(nn.Module):
    """Softmax attention, one head after the other."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (part.chunk(self.heads, -1) for part in self.qkv(x).chunk(3, -1))
        seen = []
        for query, key, value in zip(queries, keys, values, strict=True):
            weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(query.shape[-1]), -1)
            seen.append(weights @ value)
        return self.proj(torch.cat(seen, -1))


class Block(nn.Module):
    """Attention and a perceptron four times as wide, each behind a norm and beside an identity."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        inner = self.mlp["fc1"](self.norm2(x))
        gelu = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        return x + self.mlp["fc2"](gelu)


def fixed_positions(grid: int, width: int) -> Tensor:
    """Zeros for the class token, then for each patch sin and cos of its column, then of its row: [1 + L, width]."""
    quarter = width // 4
    rows = [[0.0] * width]
    for row in range(grid):
        for column in range(grid):
            waves = []
            for place in (column, row):
                angles = [place / 10000 ** (i / quarter) for i in range(quarter)]
                waves += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(waves)
    return torch.tensor(rows, dtype=torch.float64).float()


class AuthorsMAE(nn.Module):
    """Encoder, decoder and loss, for square images of any size and number of channels."""

    def __init__(self, info: DataInfo, patch: int, width: int, heads: int, depth: int, decoder: tuple[int, int, int]):
        super().__init__()
        self.patch, self.grid = patch, info.image_size // patch
        decoder_width, decoder_heads, decoder_depth = decoder
        self.patch_embed = nn.Linear(info.channels * patch * patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_blocks = nn.ModuleList(Block(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_width, patch * patch * info.channels)
        self.double()
        self.pos_embed = fixed_positions(self.grid, width).double()
        self.decoder_pos_embed = fixed_positions(self.grid, decoder_width).double()

    def squares(self, images: Tensor) -> list[Tensor]:
        """The patches, each [N, C, p, p], row by row."""
        p = self.patch
        corners = [(p * row, p * column) for row in range(self.grid) for column in range(self.grid)]
        return [images[:, :, top : top + p, left : left + p] for top, left in corners]

    def forward_encoder(self, images: Tensor, kept: list[list[int]]) -> Tensor:
        patches = torch.stack([self.patch_embed(square.flatten(1)) for square in self.squares(images)], 1)
        patches = patches + self.pos_embed[1:]
        visible = torch.stack([sample[places] for sample, places in zip(patches, kept, strict=True)])
        first = (self.cls_token + self.pos_embed[:1]).expand(len(images), -1, -1)
        x = torch.cat([first, visible], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_decoder(self, latent: Tensor, kept: list[list[int]]) -> Tensor:
        x = self.decoder_embed(latent)
        samples = []
        for sample, places in zip(x, kept, strict=True):
            rows = [sample[0]]
            for place in range(self.grid**2):
                rows.append(sample[1 + places.index(place)] if place in places else self.mask_token[0, 0])
            samples.append(torch.stack(rows))
        x = torch.stack(samples) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, images: Tensor, painted: Tensor, kept: list[list[int]], norm_pix_loss: bool) -> Tensor:
        target = torch.stack([square.permute(0, 2, 3, 1).flatten(1) for square in self.squares(images)], 1)
        if norm_pix_loss:
            mean = target.mean(-1, keepdim=True)
            variance = (target - mean).square().sum(-1, keepdim=True) / (target.shape[-1] - 1)
            target = (target - mean) / (variance + 1e-6) ** 0.5
        errors = [
            (painted[n, place] - target[n, place]).square().mean()
            for n, places in enumerate(kept)
            for place in range(self.grid**2)
            if place not in places
        ]
        return torch.stack(errors).mean()


def their_name(ours: str, decoder_depth: int) -> str:
    """`decoder.0.norm1.bias` -> `decoder_blocks.0.norm1.bias`: our decoder is a sequence."""
    name = ours.removeprefix("encoder.vit.").replace("patch_embed.proj.", "patch_embed.")
    if name.startswith("embed."):
        return f"decoder_{name}"
    if not name.startswith("decoder."):
        return name
    _, number, rest = name.split(".", 2)
    last = {decoder_depth: "decoder_norm", decoder_depth + 1: "decoder_pred"}
    return f"{last.get(int(number), f'decoder_blocks.{number}')}.{rest}"


def trained(ours: Method) -> dict[str, nn.Parameter]:
    """Its parameters that are trained, under the authors' names."""
    depth = ours.config.decoder_depth
    return {their_name(name, depth): p for name, p in ours.named_parameters() if p.requires_grad}


def as_matrix(values: Tensor, name: str) -> Tensor:
    """The patch projection is a convolution here and a matrix there."""
    return values.flatten(1) if name == "patch_embed.weight" else values


# --- ours against it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("size", "channels", "patch", "width", "heads", "decoder", "ratio"),
    [
        (8, 3, 2, 32, 1, (64, 2), 0.75),
        (12, 1, 3, 128, 2, (32, 1), 0.6),
        pytest.param(32, 3, 4, 64, 1, (512, 16), 0.9, marks=pytest.mark.slow),
    ],
)
def test_mae_is_its_authors_network(
    size: int,
    channels: int,
    patch: int,
    width: int,
    heads: int,
    decoder: tuple[int, int],
    ratio: float,
    normalise: bool,
):
    """Loss, picture and the gradient of every parameter, in float64."""
    info = DataInfo(size, channels, samples=100, classes=None, batch_size=5, seed=4)
    settings = [
        f"encoder.patch_size={patch}", f"encoder.dim={width}", "encoder.depth=2", f"method.decoder_dim={decoder[0]}",
        "method.decoder_depth=2", f"method.mask_ratio={ratio}", f"method.normalise={normalise}",
    ]  # fmt: skip
    ours = build_method(load_run(None, ["method=mae", *settings]), info).double().train()
    theirs = AuthorsMAE(info, patch, width, heads, depth=2, decoder=(*decoder, 2))
    weights, reference = trained(ours), dict(theirs.named_parameters())
    assert weights.keys() == reference.keys()
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in weights.items():  # moved, so that biases and norms count too
            weight.add_(0.1 * torch.randn(weight.shape, dtype=torch.float64, generator=draw))
            reference[name].copy_(as_matrix(weight, name))
    images = torch.randn(5, channels, size, size, dtype=torch.float64, generator=draw)

    places = theirs.grid**2
    noise = torch.rand(5, places, generator=ours.rng(NOW.step)).tolist()
    kept = [sorted(range(places), key=row.__getitem__)[: int(places * (1 - ratio))] for row in noise]
    painted = theirs.forward_decoder(theirs.forward_encoder(images, kept), kept)
    expected = theirs.forward_loss(images, painted, kept, normalise)
    expected.backward()

    pictures: list[Tensor] = []
    ours.decoder.register_forward_hook(lambda _m, _i, output: pictures.append(output[:, 1:]))
    loss = ours(Batch([images], torch.arange(5)), NOW).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(pictures[0], painted, rtol=1e-10, atol=1e-10)
    for name, weight in weights.items():
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0, name
        gradient = as_matrix(weight.grad, name)
        torch.testing.assert_close(gradient, reference[name].grad, rtol=1e-10, atol=1e-10, msg=f"gradient of {name}")


def test_mae_draws_its_weights_as_the_authors_do():
    run = load_run(None, ["method=mae", "recipe=paper", "encoder.depth=2", "encoder.dim=256"])
    method = build_method(run, DataInfo(64, 3, samples=100, classes=None))
    for name, value in trained(method).items():
        if name in ("cls_token", "mask_token"):
            assert value.std().item() == pytest.approx(0.02, rel=0.15)
        elif name == "patch_embed.bias":  # a convolution's: the authors leave it as torch draws it
            assert value.abs().max().item() == pytest.approx((3 * 8 * 8) ** -0.5, rel=0.05)
        elif value.ndim == 1:
            assert value.eq(1 if "norm" in name and name.endswith("weight") else 0).all(), name
        else:
            bound = math.sqrt(6 / sum(as_matrix(value, name).shape))  # Xavier's
            assert value.abs().max().item() == pytest.approx(bound, rel=0.01), name
            assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), name
    positions = dict(method.named_parameters())["encoder.vit.pos_embed"]
    assert not positions.requires_grad
    torch.testing.assert_close(positions[0], fixed_positions(8, 256), rtol=0, atol=1e-7)
    torch.testing.assert_close(method.positions, fixed_positions(8, 512), rtol=0, atol=1e-7)


def test_mae_decays_what_its_authors_do():
    """timm's groups, which theirs are: vectors and biases are spared, class and mask tokens are not."""
    method = small("mae")
    optimizer = make_optimizer(method, Recipe(weight_decay=0.05))
    decayed = {id(p) for group in optimizer.param_groups if group["decays"] for p in group["params"]}
    no_decay, decay = param_groups_weight_decay(method, 0.05)
    assert decayed == {id(p) for p in decay["params"]}
    names = {name for name, p in method.named_parameters() if id(p) in decayed}
    assert {"mask_token", "encoder.vit.cls_token"} <= names
    assert len(no_decay["params"]) + len(decayed) == sum(p.requires_grad for p in method.parameters())


def test_mae_sees_crops_resized_as_the_authors_do():
    """main_pretrain.py: RandomResizedCrop of 0.2 to 1 of the area, bicubic, and a flip."""
    assert small("mae").views == (View(crop=(0.2, 1.0), flip=0.5, interpolation="bicubic"),)


def test_mae_needs_something_to_paint():
    with pytest.raises(ConfigError, match=r"^method\.mask_ratio=0\.75 hides none of 1 patches: .* encoder\.patch_size"):
        small("mae", "encoder.patch_size=8")
    with pytest.raises(ConfigError, match=r"^method\.normalise needs patches of more than one number"):
        build_method(load_run(None, ["method=mae", "encoder.patch_size=1"]), replace(INFO, channels=1))


@pytest.mark.parametrize("normalise", [True, False])
def test_a_reconstruction_is_what_the_loss_sees(normalise: bool):
    """Hidden patches are the prediction, whose error is the loss; visible ones are those of the image."""
    method = small("mae", f"method.normalise={str(normalise).lower()}")
    images = batch_of(method).views[0]
    size, grid = method.encoder.patch_size, method.encoder.grid
    seen, predicted = (patchify(method.picture(images)[title], size) for title in ("seen", "reconstructed"))
    target = patchify(images, size)
    is_hidden = (seen == 0).all(-1)
    assert (is_hidden.sum(1) == grid**2 - method.kept).all()
    for shown in (seen, predicted):
        assert torch.equal(shown[~is_hidden], target[~is_hidden])
    if normalise:
        variance, mean = torch.var_mean(target, -1, keepdim=True)
        target, predicted = ((each - mean) / (variance + 1e-6).sqrt() for each in (target, predicted))
    wanted = (predicted - target).square().mean(-1)[is_hidden].mean()
    torch.testing.assert_close(method(batch_of(method), replace(NOW, step=0)).loss, wanted)
