"""Encoders: any image size, config errors, and torchvision's and timm's features from the same weights."""

from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from eagleray.config.registry import declared, find
from eagleray.config.timm_names import timm_names
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.encoders.convnet import ConvNet
from eagleray.encoders.resnet import ResNet
from eagleray.encoders.vit import ViT

OF_TIMM = ["resnet18d", "efficientnet_b0", "convnext_atto"]  # batch norms with and without activation, layer norms
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet34", "resnet50", "vit_small")]
LARGER = [pytest.param(size, marks=pytest.mark.slow) for size in (64, 96)]  # sides of images


def make(name: str, image_size: int = 32, channels: int = 3, **settings) -> Encoder:
    torch.manual_seed(0)
    kind = find("encoder", name).load()
    return kind(name, kind.Config(**settings), image_size=image_size, channels=channels).eval()


def images(image_size: int = 32, channels: int = 3, samples: int = 2) -> Tensor:
    return torch.randn(samples, channels, image_size, image_size, generator=torch.Generator().manual_seed(1))


def test_what_a_file_declares_is_read_without_its_contract():
    assert set(declared("encoder")) == {
        "convnet", "resnet18", "resnet34", "resnet50", "vit_tiny", "vit_small", "vit_base", "pretrained", "timm",
        "triangle_codes", "shrinkage_codes",
    }  # fmt: skip
    tokens = {name for name, file in declared("encoder").items() if file.values.get("has_tokens")}
    assert tokens == {"vit_tiny", "vit_small", "vit_base"}
    for file in declared("encoder").values():
        assert file.summary.endswith(".")
        for field in file.Config.model_fields.values():
            assert field.description


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [4, 8, 28, 32, 33, *LARGER])
@pytest.mark.parametrize("name", ["convnet", "resnet18", "vit_tiny"])
def test_any_size_grey_or_colour_becomes_one_vector_an_image(name: str, image_size: int, channels: int):
    settings = {"depth": 1, "dim": 32} if name == "vit_tiny" else {}
    encoder = make(name, image_size, channels, **settings)
    features = encoder(images(image_size, channels))
    assert features.shape == (2, encoder.dim)
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet", "resnet18", "vit_tiny", *OF_TIMM, *LARGE])
def test_every_weight_gets_a_gradient(name: str):
    encoder = make(name, **({"depth": 2} if name.startswith("vit") else {})).train()
    encoder(images(samples=4)).square().sum().backward()
    starts_at_zero = name in OF_TIMM  # the last norm of a block, so that the layers before it get a gradient of zero
    without = [
        key
        for key, weight in encoder.named_parameters()
        if weight.grad is None or not (starts_at_zero or weight.grad.any())
    ]
    assert without == []  # a weight without one would stop DistributedDataParallel


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_resnet_widths(name: str, dim: int):
    assert make(name).dim == dim


def test_convnet_stays_small():
    encoder = make("convnet")
    assert encoder.dim == 4 * (192 + 384)
    assert sum(weight.numel() for weight in encoder.parameters()) == 873_648


@pytest.mark.parametrize(("image_size", "side"), [(4, 2), (8, 2), (28, 3), (32, 4), (64, 8), (224, 28)])
def test_convnet_halves_only_what_is_large_enough(image_size: int, side: int):
    encoder = make("convnet", image_size)
    assert isinstance(encoder, ConvNet)
    assert encoder.blocks(images(image_size)).shape == (2, 384, side, side)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet", "resnet18", "vit_tiny", *OF_TIMM])
def test_channels_last_changes_nothing_but_the_speed(name: str):
    encoder, batch = make(name), images()
    contiguous = encoder(batch)
    encoder.to(memory_format=torch.channels_last)
    torch.testing.assert_close(encoder(batch.to(memory_format=torch.channels_last)), contiguous, rtol=1e-4, atol=1e-5)


# --- residual networks -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_imagenet_stem_gives_torchvisions_features(name: str):
    encoder = make(name, 64, stem="imagenet")
    assert isinstance(encoder, ResNet)
    reference = torchvision.models.get_model(name, weights=None).eval()
    missing = reference.load_state_dict(encoder.network.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"fc.weight", "fc.bias"}
    reference.fc = torch.nn.Identity()
    torch.testing.assert_close(encoder(images(64)), reference(images(64)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "image_size", "side"),
    [
        ("auto", 64, 8),
        ("small", 96, 12),
        ("auto", 96, 3),
        ("imagenet", 64, 2),
        ("auto", 32, 4),
        ("auto", 65, 3),
    ],
)
def test_small_stem_keeps_eight_times_finer_positions_up_to_64_pixels(stem: str, image_size: int, side: int):
    encoder = make("resnet18", image_size, stem=stem)
    assert isinstance(encoder, ResNet)
    seen = []
    encoder.network.layer4.register_forward_hook(lambda module, given, output: seen.append(output.shape[2:]))
    encoder(images(image_size))
    assert seen == [(side, side)]


def test_grey_stems_are_initialised_as_torchvision_initialises():
    """Kaiming over the outputs: variance 2 / (64 * 49), whatever the number of input channels."""
    encoder = make("resnet18", 96, channels=1)
    assert isinstance(encoder, ResNet)
    assert encoder.network.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


def test_zero_init_residual_starts_every_block_as_the_identity():
    for zero, expected in [(True, 0.0), (False, 1.0)]:
        encoder = make("resnet18", zero_init_residual=zero)
        assert isinstance(encoder, ResNet)
        assert all(block.bn2.weight.eq(expected).all() for layer in (1, 2, 3, 4) for block in _layer(encoder, layer))


def _layer(encoder: ResNet, number: int) -> torch.nn.Sequential:
    return getattr(encoder.network, f"layer{number}")


# --- vision transformers ---------------------------------------------------------------------------------


def vit(name: str = "vit_tiny", image_size: int = 32, channels: int = 3, **settings) -> ViT:
    encoder = make(name, image_size, channels, **{"depth": 2, **settings})
    assert isinstance(encoder, ViT)
    return encoder


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        "vit_tiny_patch16_224",
        "deit3_small_patch16_224",  # no position for the class token, layer scale
        "vit_small_patch14_reg4_dinov2",  # registers
        "vit_base_patch16_clip_224",  # a norm before the blocks
    ],
)
def test_unmasked_tokens_are_timms_forward_features(architecture: str):
    encoder, batch = vit(architecture, patch_size=8), images()
    reference = timm.create_model(architecture, img_size=32, patch_size=8, num_classes=0, depth=2).eval()
    reference.load_state_dict(encoder.vit.state_dict())
    features = reference.forward_features(batch)
    expected = torch.cat([features[:, :1], features[:, reference.num_prefix_tokens :]], dim=1)
    torch.testing.assert_close(encoder.tokens(encoder.patches(batch)), expected)


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_tokens_after_the_last_blocks_are_timms(architecture: str):
    """Not normalised, and without registers; the last ones, normalised, are the tokens."""
    encoder = vit(architecture, patch_size=8, depth=3)
    patches = encoder.patches(images())
    found = encoder.block_tokens(patches, 2)
    theirs = encoder.vit.forward_intermediates(
        images(), [1, 2], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    assert encoder.depth == 3
    assert len(found) == 2
    for ours, (kept, prefix) in zip(found, theirs, strict=True):
        torch.testing.assert_close(ours, torch.cat([prefix[:, :1], kept], dim=1))
    torch.testing.assert_close(encoder.vit.norm(found[-1]), encoder.tokens(patches))
    assert [each.shape for each in encoder.block_tokens(patches[:, :5], 1)] == [(2, 6, encoder.dim)]


@pytest.mark.parametrize("architecture", ["vit_base_patch16_siglip_224", "vit_base_patch16_reg4_gap_256"])
def test_architectures_without_a_class_token_get_one(architecture: str):
    encoder = vit(architecture, patch_size=8, depth=1)
    assert encoder.tokens(encoder.patches(images())).shape == (2, 17, 768)


@pytest.mark.parametrize(
    ("name", "dim", "heads"),
    [("vit_tiny", 192, 3), ("vit_small", 384, 6), ("vit_base", 768, 12)],
)
def test_widths_and_depths(name: str, dim: int, heads: int):
    encoder = vit(name, depth=1)
    assert (encoder.dim, encoder.vit.blocks[0].attn.num_heads) == (dim, heads)
    assert len(make("vit_tiny").get_submodule("vit.blocks")._modules) == 12


@pytest.mark.parametrize(("dim", "heads"), [(16, 1), (48, 3), (96, 3), (128, 2), (160, 5), (256, 4)])
def test_any_width_divides_into_heads(dim: int, heads: int):
    encoder = vit(depth=1, dim=dim)
    assert encoder.vit.blocks[0].attn.num_heads == heads
    assert encoder(images()).shape == (2, dim)


@pytest.mark.parametrize(
    ("image_size", "patch_size"),
    [(8, 2), (10, 2), (28, 4), (32, 4), (33, 3), (64, 8), (96, 16), (100, 20), (224, 16)],
)
def test_patches_cut_the_image_into_about_eight_or_are_about_sixteen_pixels(image_size: int, patch_size: int):
    encoder = vit(image_size=image_size, depth=1, dim=16)
    assert (encoder.patch_size, encoder.grid) == (patch_size, image_size // patch_size)
    assert encoder.patches(images(image_size)).shape == (2, encoder.grid**2, 16)


def test_patches_lie_row_by_row():
    """Patch i of the image is the patch embedding of the square at (i // grid, i % grid)."""
    encoder, batch = vit(patch_size=8), images()
    found = encoder.patches(batch) - encoder.vit.pos_embed[:, 1:]
    weight, bias = encoder.vit.patch_embed.proj.weight, encoder.vit.patch_embed.proj.bias
    for index in range(16):
        row, column = 8 * (index // 4), 8 * (index % 4)
        square = batch[:, :, row : row + 8, column : column + 8]
        expected = torch.einsum("nchw,dchw->nd", square, weight) + bias
        torch.testing.assert_close(found[:, index], expected, rtol=1e-4, atol=1e-5)


def test_masked_patches_are_the_mask_token_at_their_position():
    encoder, token = vit(patch_size=8), torch.randn(192)
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(2)) < 0.5
    plain, masked = encoder.patches(images()), encoder.patches(images(), mask, token)
    positions = encoder.vit.pos_embed[:, 1:].expand(2, -1, -1)
    torch.testing.assert_close(masked[mask], token + positions[mask])
    assert torch.equal(masked[~mask], plain[~mask])


def test_a_subset_of_patches_is_all_the_blocks_see():
    """Dropping patches is the same as never having had them: their order does not matter either."""
    encoder = vit()
    patches = encoder.patches(images())
    kept = torch.tensor([5, 2, 60])
    before = encoder.tokens(patches[:, kept])
    assert before.shape == (2, 4, 192)
    after = encoder.tokens(patches[:, kept.flip(0)])
    torch.testing.assert_close(before[:, 1:], after[:, 1:].flip(1), rtol=1e-4, atol=1e-5)


def test_crops_of_another_size_take_positions_between_those_learnt():
    """Multi-crop; the reference is timm's own handling of other sizes."""
    ours = find("encoder", "vit_tiny").load()
    encoder = ours("vit_tiny", ours.Config(depth=1, dim=32, patch_size=4), image_size=32, channels=3).eval()
    reference = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, depth=1, embed_dim=32, num_heads=1, num_classes=0,
        dynamic_img_size=True,
    ).eval()  # fmt: skip
    reference.load_state_dict(encoder.vit.state_dict(), strict=False)
    crops = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(encoder.tokens(encoder.patches(crops)), reference.forward_features(crops))


@pytest.mark.parametrize(
    ("architecture", "first"),
    [
        ("vit_tiny_patch16_224", 1),
        ("deit3_small_patch16_224", 0),  # no position for the class token
        ("vit_small_patch14_reg4_dinov2", 0),  # registers
    ],
)
def test_fixed_positions_tell_places_apart_and_stay(architecture: str, first: int):
    """Each patch gets the sines and cosines of its column, then of its row; the class token zero."""
    encoder = vit(architecture, patch_size=8, depth=1)
    encoder.fix_positions()
    positions, width = encoder.vit.pos_embed, encoder.dim
    assert not positions.requires_grad
    assert positions.shape == (1, first + 16, width)
    assert not positions[:, :first].any()
    grid = positions[0, first:].view(4, 4, 2, 2, width // 4)  # row, column, of which, sine or cosine, wavelength
    for row in range(4):
        for column in range(4):
            for of, place in enumerate((column, row)):
                angles = torch.tensor([place * 10_000 ** (-4 * i / width) for i in range(width // 4)])
                torch.testing.assert_close(grid[row, column, of], torch.stack([angles.sin(), angles.cos()]))
    assert encoder(images(16)).shape == (2, width)  # crops of another size take positions between them


def test_features_are_the_mean_of_the_patch_tokens_or_the_class_token():
    mean, first = vit(), vit(pool="class")
    tokens = mean.tokens(mean.patches(images()))
    torch.testing.assert_close(mean(images()), tokens[:, 1:].mean(dim=1))
    torch.testing.assert_close(first(images()), tokens[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_size", "settings", "says"),
    [
        (
            "vit_tiny",
            32,
            {"patch_size": 5},
            r"encoder\.patch_size=5 .* 32 pixels; these do: 1, 2, 4, 8, 16, 32$",
        ),
        ("vit_tiny", 37, {}, "an image of 37 pixels cannot be cut"),
        ("timm", 32, {}, r"encoder=timm needs encoder\.model=NAME"),
        ("timm", 32, {"model": "efficientnet_b9"}, "efficientnet_b9 is no network of timm"),
        ("timm", 32, {"model": "vit_tiny_patch16_224"}, "plain ViT.*: write encoder=vit_tiny_patch16_224"),
        ("efficientnet_b0", 32, {"model": "resnet18"}, r"encoder\.model belongs to encoder\.name=timm"),
        (
            "inception_v3",
            32,
            {},
            "encoder=inception_v3 cannot take images of 32 pixels and 3 channels .*; set image_size",
        ),
        ("efficientnet_b0", 8, {}, "of 8 pixels .*a layer would shrink a single position.*; set image_size"),
        ("swin_tiny_patch4_window7_224", 224, {"stem": "small"}, "has no stride to halve"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(name: str, image_size: int, settings: dict, says: str):
    with pytest.raises(ConfigError, match=says) as caught:
        make(name, image_size, **settings)
    assert "\n" not in str(caught.value)


# --- any network of timm ---------------------------------------------------------------------------------


def test_names_of_timm_are_those_that_timm_lists():
    assert set(timm_names()) == set(timm.list_models())
    families = {name: find("encoder", name).class_name for name in timm.list_models(module="vision_transformer")}
    assert set(families.values()) == {"ViT"}
    assert find("encoder", "deit_tiny_distilled_patch16_224").class_name == "Timm"


def test_unknown_names_are_answered_with_the_nearest_of_timm():
    with pytest.raises(ConfigError, match="no encoder 'eficientnet_b0'; did you mean efficientnet_b0"):
        find("encoder", "eficientnet_b0")


@pytest.mark.parametrize("name", [*OF_TIMM, pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)])
def test_features_are_timms_own(name: str):
    """At a size that leaves the stem as it is: pooled features without the classifier."""
    encoder, batch = make(name, 96), images(96)
    size = {"img_size": 96} if name.startswith("swin") else {}
    reference = timm.create_model(name, num_classes=0, **size).eval()
    reference.load_state_dict(encoder.get_submodule("network").state_dict())
    torch.testing.assert_close(encoder(batch), reference(batch))
    assert encoder.dim == reference.num_features or name == "efficientnet_b0"


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [28, 33, *LARGER])
@pytest.mark.parametrize("name", OF_TIMM)
def test_networks_of_timm_take_many_sizes(name: str, image_size: int, channels: int):
    features = make(name, image_size, channels)(images(image_size, channels))
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "image_size", "side"), [("auto", 64, 4), ("timm", 64, 2), ("small", 96, 6)])
def test_a_small_stem_doubles_the_resolution_of_timms_networks(stem: str, image_size: int, side: int):
    encoder, seen = make("efficientnet_b0", image_size, stem=stem), []
    encoder.get_submodule("network.conv_head").register_forward_hook(lambda *given: seen.append(given[2].shape[2:]))
    encoder(images(image_size))
    assert seen == [(side, side)]


@pytest.mark.slow
def test_networks_of_timm_draw_nothing_at_random_in_training():
    """Torch's global generator is in no checkpoint, so dropout would make a resumed run another one."""
    encoder = make("vgg11_bn", 32).train()
    before = torch.random.get_rng_state()
    encoder(images())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert any(isinstance(part, torch.nn.Dropout) for part in encoder.modules())


# --- public weights --------------------------------------------------------------------------------------


def saved(architecture: str, path: Path, **options) -> dict[str, Tensor]:
    """Save weights as timm publishes them, with a classifier."""
    torch.manual_seed(5)
    state = timm.create_model(architecture, **options).state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("name", "inner", "settings"),
    [("convnext_atto", "network", {}), ("resnet18", "network", {"stem": "imagenet"}), ("vit_tiny", "vit", {})],
)
def test_public_weights_of_a_file_are_taken(name: str, inner: str, settings: dict, ending: str, tmp_path: Path):
    state = saved({"vit_tiny": "vit_tiny_patch16_224"}.get(name, name), file := tmp_path / f"weights{ending}")
    encoder = make(name, 224, weights=file, **settings)
    own = encoder.get_submodule(inner).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in own.items())
    assert len(own) >= len(state) - 2  # all but the classifier
    assert type(encoder).start(encoder.Config(weights=file)) == "public weights"  # type: ignore[call-arg]
    assert getattr(encoder.config, "weights") is None  # noqa: B009 - what a checkpoint describes needs no file


def test_public_weights_fit_grey_images_and_other_sizes_as_timm_fits_them(tmp_path: Path):
    saved("vit_tiny_patch16_224", file := tmp_path / "vit.safetensors")
    overlay = {"file": str(file)}
    options = {"img_size": 32, "patch_size": 4, "in_chans": 1, "num_classes": 0, "global_pool": "avg", "fc_norm": False}
    reference = timm.create_model("vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, **options)
    encoder = make("vit_tiny", 32, 1, weights=file)
    torch.testing.assert_close(encoder(images(32, 1)), reference.eval()(images(32, 1)))


def test_weights_in_the_hubs_cache_are_taken_and_absent_ones_are_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", None)  # any connection fails
    with pytest.raises(
        ConfigError, match=r"are not on this machine.*`hf download timm/convnext_atto\.d2_in1k`"
    ) as caught:
        make("convnext_atto", weights="timm")
    assert "\n" not in str(caught.value)
    repository = tmp_path / "models--timm--convnext_atto.d2_in1k"
    (snapshot := repository / "snapshots/abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    state = saved("convnext_atto", snapshot / "model.safetensors")
    encoder = make("convnext_atto", weights="timm")
    assert torch.equal(encoder.get_submodule("network.stem.0").get_parameter("weight"), state["stem.0.weight"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("convnext_atto", {}, "weights.pth does not fit convnext_atto: it has no 'fc.weight'"),
        ("resnet34", {"stem": "imagenet"}, "weights.pth does not fit resnet34: Missing key"),
        ("resnet18", {}, r"public weights have the large stem; set encoder\.stem=imagenet"),
        ("vit_tiny", {}, "weights.pth does not fit vit_tiny_patch16_224: Missing key"),
        ("convnext_atto", {"weights": "nowhere.pth"}, "nowhere.pth does not exist"),
        ("convnext_atto", {"weights": __file__}, "is not a file of weights that can be read"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name: str, settings: dict, says: str, tmp_path: Path):
    saved("resnet18", file := tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=says) as caught:
        make(name, **{"weights": file, **settings})
    assert "\n" not in str(caught.value)


def test_convnet_keeps_cells_of_its_last_blocks_apart():
    encoder = make("convnet", 24, width=4, grid=2, last=3)
    maps: list[Tensor] = []
    hooks = [
        each.register_forward_hook(lambda *found: maps.append(found[2]))
        for each in encoder.modules()
        if isinstance(each, nn.ReLU)
    ]
    features = encoder(images(24))
    for hook in hooks:
        hook.remove()
    assert [each.shape[1:] for each in maps] == [(4, 12, 12), (8, 6, 6), (16, 3, 3), (32, 3, 3)]
    wanted = [F.adaptive_avg_pool2d(each, 2).permute(0, 2, 3, 1).flatten(1) for each in maps[1:]]
    assert features.shape == (2, encoder.dim) == (2, 4 * (8 + 16 + 32))
    torch.testing.assert_close(features, torch.cat(wanted, 1))


def test_convnet_pools_before_its_relu_without_a_difference():
    """Features and gradients are bit by bit those of the usual order."""
    encoder = make("convnet", width=8, grid=1, last=1).train()
    assert isinstance(encoder, ConvNet)
    usual = deepcopy(encoder)
    layers = list(usual.blocks)
    for place, layer in enumerate(layers[:-1]):
        if isinstance(layer, nn.MaxPool2d):
            layers[place], layers[place + 1] = layers[place + 1], layer
    given = images(samples=16)
    found, wanted = encoder(given), nn.Sequential(*layers)(given).mean(dim=(2, 3))
    assert torch.equal(found, wanted)
    for features in (found, wanted):
        features.square().sum().backward()
    for own, other in zip(encoder.parameters(), usual.parameters(), strict=True):
        assert own.grad is not None
        assert other.grad is not None
        assert torch.equal(own.grad, other.grad)


@pytest.mark.parametrize(
    ("settings", "words"), [({"last": 5}, r"encoder\.last=5"), ({"grid": 3}, r"encoder\.grid=3.* 2 ")]
)
def test_convnet_refuses_blocks_and_cells_that_it_has_not(settings: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        make("convnet", 8, **settings)
