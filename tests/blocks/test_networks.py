"""Parts that methods share."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eagleray.blocks import distributed
from eagleray.blocks.networks import Centre, PrototypeHead, Queue, check_queue, encode_crops, mlp, small_crop_size
from eagleray.config.registry import find
from eagleray.contracts.encoder import Encoder
from eagleray.contracts.errors import ConfigError
from eagleray.runs.processes import two_processes
from method_cases import INFO


def pushed() -> torch.Tensor:
    """What a queue of six holds after four pushes of two rows, made by one process or by two."""
    torch.manual_seed(0)
    queue = Queue(6, 3)
    for step in range(4):
        rows = torch.full((2, 3), float(step)) + torch.tensor([[0.0], [0.5]])
        queue.push(rows.chunk(distributed.world_size())[distributed.rank()])
    return queue.rows


@pytest.mark.slow
def test_a_queue_keeps_the_newest_rows_of_all_workers_in_their_order():
    alone = pushed()
    assert alone[:, 0].tolist() == [3.0, 3.5, 1.0, 1.5, 2.0, 2.5]  # the oldest were overwritten
    for together in two_processes(pushed):
        assert torch.equal(together, alone)


def test_a_queue_starts_with_random_directions_and_says_what_is_real():
    queue = Queue(4, 8)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(4))
    assert queue.filled == 0
    for filled in (2, 4, 4):
        queue.push(torch.ones(2, 8))
        assert queue.filled == filled
    other = Queue(4, 8)
    other.load_state_dict(queue.state_dict())  # all of it is in a checkpoint
    assert other.filled == 4
    assert torch.equal(other.rows, queue.rows)


@pytest.mark.parametrize(("size", "near"), [(100, 128), (200, 256), (10, 128)])
def test_a_queue_that_cannot_take_whole_batches_is_refused(size: int, near: int):
    with pytest.raises(
        ConfigError, match=rf"method\.queue={size} must hold whole batches of batch_size=128: take {near}"
    ):
        check_queue(size, 128)
    check_queue(near, 128)


def test_mlp_layers_are_what_is_asked_for():
    plain = mlp([4, 5, 6], norm=False, activation=nn.GELU)
    assert [type(layer) for layer in plain] == [nn.Linear, nn.GELU, nn.Linear]
    x = torch.randn(7, 4)
    torch.testing.assert_close(plain(x), plain[2](F.gelu(plain[0](x))))
    head = mlp([4, 5, 6], last_norm=True, last_affine=False)
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert head[0].bias is None  # the norm that follows has one
    assert head[3].bias is None
    assert head[4].weight is None
    assert mlp([4, 5, 6])[3].bias is not None
    assert mlp([4, 5, 6], last_bias=False)[3].bias is None


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_the_heads_first_weights_are_spread_as_lightlys():
    from lightly.models.modules.heads import DINOProjectionHead

    torch.manual_seed(0)
    ours, theirs = PrototypeHead([64, 256, 256, 64], 6).layers, DINOProjectionHead(64, 256, 64, 6).layers
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert float(own.detach().std()) == pytest.approx(float(other.detach().std()), rel=0.05)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", [False, True])
def test_the_head_with_prototypes_is_lightlys(norm: bool):
    from lightly.models.modules.heads import DINOProjectionHead

    torch.manual_seed(0)
    head = PrototypeHead([5, 7, 7, 4], 6, norm=norm)
    theirs = DINOProjectionHead(5, 7, 4, 6, batch_norm=norm)
    theirs.layers.load_state_dict(head.layers.state_dict())
    theirs.last_layer.weight_v.data.copy_(head.prototypes.weight)  # weight_g, the norms, is 1
    features = torch.randn(8, 5)
    torch.testing.assert_close(head(features), theirs(features), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.embed(features).norm(dim=1), torch.ones(8))
    head.prototypes.weight.data *= 3  # a prototype is a direction
    torch.testing.assert_close(head(features), theirs(features), rtol=1e-5, atol=1e-6)


def test_the_head_compares_in_float32_inside_bf16_autocast():
    head, features = PrototypeHead([5, 7, 4], 6), torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        embedded = head.embed(features)
        logits = head.compare(embedded)
    assert (embedded.dtype, logits.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(logits, head.compare(embedded))


def centred() -> list[torch.Tensor]:
    """A centre after three batches, and the targets of the third, made by one process or by two."""
    centre, targets = Centre(3, 0.9).double(), torch.zeros(0)
    for step in range(3):
        logits = torch.arange(12.0, dtype=torch.float64).view(4, 3).sin() + step
        mine = logits.chunk(distributed.world_size())[distributed.rank()]
        targets = centre.targets(mine, 0.5)
        centre.update(mine)
    return [centre.mean, distributed.gather(targets)]


@pytest.mark.slow
def test_a_centre_is_the_moving_mean_of_all_workers_and_acts_before_it_moves():
    logits = torch.arange(12.0, dtype=torch.float64).view(4, 3).sin()
    mean = before = torch.zeros(3, dtype=torch.float64)
    for step in range(3):
        before, mean = mean, 0.9 * mean + 0.1 * (logits + step).mean(0)
    powers = ((logits + 2 - before) / 0.5).exp()
    expected = [mean, powers / powers.sum(1, keepdim=True)]
    for found in (centred(), *two_processes(centred)):
        torch.testing.assert_close(found, expected)


def test_crops_of_one_size_go_through_the_encoder_together_and_keep_their_order():
    views, passes = [torch.full((2, 1, side, side), float(i)) for i, side in enumerate((8, 8, 4, 4, 4))], []

    def encode(images: torch.Tensor) -> torch.Tensor:
        passes.append(tuple(images.shape))
        return images.mean((1, 2, 3))[:, None]

    assert encode_crops(encode, views).squeeze().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert passes == [(4, 1, 8, 8), (6, 1, 4, 4)]


def encoder_of(name: str, size: int, **settings: int) -> Encoder:
    kind = find("encoder", name).load()
    return kind(name, kind.Config(**settings), image_size=size, channels=3)


@pytest.mark.parametrize(
    ("name", "size", "settings", "default"),
    [
        ("vit_tiny", 224, {"depth": 1, "dim": 16}, 96),  # the papers'
        ("vit_tiny", 32, {"depth": 1, "dim": 16}, 16),
        ("vit_tiny", 8, {"depth": 1, "dim": 16, "patch_size": 8}, 8),
        ("convnet", 32, {}, 16),
        ("convnet", 28, {}, 12),
        ("convnet", 8, {}, 4),
    ],
)
def test_small_crops_are_three_sevenths_of_the_image_in_whole_patches(
    name: str, size: int, settings: dict[str, int], default: int
):
    encoder, info = encoder_of(name, size, **settings).train(), replace(INFO, image_size=size)
    assert small_crop_size(None, encoder, info) == default
    assert encoder.training
    assert encoder(torch.randn(2, 3, default, default)).shape == (2, encoder.dim)


@pytest.mark.parametrize(
    ("name", "asked", "says"),
    [
        ("vit_tiny", 10, r"method\.local_size=10 must be a multiple of the patches' 4 pixels: take 16$"),
        ("vit_tiny", 36, r"method\.local_size=36 is larger than the images of 32 pixels: take 16$"),
        ("convnet", 4, r"method\.local_size=4 is too small for this encoder, .* take 16$"),
    ],
)
def test_small_crops_that_the_encoder_cannot_take_are_refused(name: str, asked: int, says: str):
    with pytest.raises(ConfigError, match=says):
        small_crop_size(asked, encoder_of(name, 32), replace(INFO, image_size=32))
