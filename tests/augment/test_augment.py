"""Views against torchvision: the same drawn parameters, image by image, through its own functions."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from eagleray.augment import View, byol_views, colour, evaluation_view, geometry, make_view, make_views, multi_crop
from eagleray.augment.parameters import Parameters, draw_parameters
from eagleray.augment.randaugment import OPERATIONS, randaugment
from eagleray.contracts.errors import ConfigError

SIMCLR = View(crop=(0.08, 1.0), flip=0.5, jitter=0.5, grayscale=0.2, blur=0.5)
EVERYTHING = replace(SIMCLR, shift=0.125, solarize=0.3, rotate=0.5, cutout=0.4)
TV_ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def photos(samples: int, height: int = 32, width: int = 32, channels: int = 3, low: int = 0, high: int = 255):
    """Smooth images with some grain, uint8."""
    generator = torch.Generator().manual_seed(samples + height)
    coarse = torch.rand(samples, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    grain = 0.1 * torch.rand(samples, channels, height, width, generator=generator)
    return (low + (high - low) * (smooth + grain).clamp(0, 1)).to(torch.uint8)


def view_of(view: View, images: torch.Tensor, size: int = 32, seed: tuple[int, ...] = (1, 2), exact: bool = False):
    """A view in 0..1: mean 0 and std 1 leave the values alone."""
    channels = images.shape[1]
    return make_view(view, images, size=size, seed=seed, mean=[0.0] * channels, std=[1.0] * channels, exact=exact)


def sizes(samples: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor([[height, width]]).expand(samples, -1)


def drawn_for(view: View, images: torch.Tensor, size: int = 32, seed: tuple[int, ...] = (1, 2)) -> Parameters:
    return draw_parameters(view, sizes(len(images), *images.shape[2:]), size, seed)


def by_torchvision(view: View, images: torch.Tensor, size: int, drawn: Parameters) -> torch.Tensor:
    """SimCLR's chain, one image at a time."""
    views = []
    for i, image in enumerate(images / 255):
        (top, left), (height, width) = drawn.corner[:, i].int().tolist(), drawn.box[:, i].int().tolist()
        image = tv.resized_crop(image, top, left, height, width, [size, size], antialias=True)
        image = tv.horizontal_flip(image) if drawn.flip[i] else image
        factors = torch.stack([drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue])[:, i].tolist()
        for operation in drawn.order[:, i].tolist() if view.jitter else []:
            image = TV_ADJUST[operation](image, factors[operation]) if operation >= 0 else image
        image = tv.rgb_to_grayscale(image, 3) if drawn.grayscale[i] and len(image) == 3 else image
        kernel = 2 * max(1, size // 20) + 1
        image = tv.gaussian_blur(image, [kernel, kernel], [drawn.sigma[i].item()] * 2) if drawn.sigma[i] else image
        views.append(tv.solarize(image, 0.5) if drawn.solarize[i] else image)
    return torch.stack(views)


# Geometry


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (40, 28, 32), (17, 61, 24), (64, 64, 20), (9, 8, 33)]
)
def test_crop_is_resized_crop(height, width, size):
    view, images = View(crop=(0.08, 1.0), flip=0.5), photos(24, height, width)
    expected = by_torchvision(view, images, size, drawn_for(view, images, size))
    torch.testing.assert_close(view_of(view, images, size), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (32, 32, 96), (32, 32, 12), (48, 96, 32)])
def test_bicubic_is_torchvisions_without_the_overshoot(height, width, size, exact):
    """On images with hard edges, which bicubic interpolation overshoots."""
    images = 255 * torch.randint(0, 2, (40, 3, height, width), dtype=torch.uint8)
    view = View(crop=(0.08, 1.0), flip=0.5, interpolation="bicubic")
    drawn = drawn_for(view, images, size)
    theirs = []
    for i, image in enumerate(images / 255):
        (top, left), box = drawn.corner[:, i].int().tolist(), drawn.box[:, i].int().tolist()
        cubic = v2.InterpolationMode.BICUBIC
        resized = tv.resized_crop(image, top, left, *box, [size, size], interpolation=cubic, antialias=True)
        theirs.append(tv.horizontal_flip(resized) if drawn.flip[i] else resized)
    overshot = torch.stack(theirs)
    assert overshot.min() < -0.01
    torch.testing.assert_close(view_of(view, images, size, exact=exact), overshot.clamp(0, 1), atol=1e-5, rtol=0)


def test_fast_stays_near_exact_under_bicubic():
    images, view = photos(48), replace(SIMCLR, interpolation="bicubic")
    assert (view_of(view, images) - view_of(view, images, exact=True)).abs().mean() < 0.02


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 50), (50, 20), (24, 61), (101, 100), (7, 20)])
def test_without_a_crop_the_shorter_side_is_resized_and_the_middle_shown(height, width):
    images = photos(3, height, width)
    expected = tv.center_crop(tv.resize(images / 255, [24], antialias=True), [24, 24])
    torch.testing.assert_close(view_of(View(), images, 24), expected, atol=1e-4, rtol=0)


def test_plain_normalises_and_nothing_else():
    images, mean, std = photos(5), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    expected = tv.normalize(images / 255, list(mean), list(std))
    torch.testing.assert_close(evaluation_view(images, 32, mean, std), expected, atol=1e-6, rtol=0)


def test_shift_moves_whole_pixels_over_reflected_borders():
    view, images = View(shift=0.125, flip=0.5), photos(64)
    drawn, made = drawn_for(view, images), view_of(view, images)
    assert drawn.shift.abs().max() == 4
    for i, image in enumerate(images / 255):
        y, x = (4 + drawn.shift[:, i]).int().tolist()
        expected = tv.crop(tv.pad(image, [4], padding_mode="reflect"), y, x, 32, 32)
        expected = tv.horizontal_flip(expected) if drawn.flip[i] else expected
        torch.testing.assert_close(made[i], expected, atol=1e-6, rtol=0)


def test_a_black_border_is_torchvisions_padded_crop():
    """RandomCrop(32, padding=4) as RotNet's authors use it."""
    images, view = photos(60), View(shift=0.125, shift_border="black", flip=0.5)
    drawn = drawn_for(view, images)
    assert set(drawn.shift.unique().tolist()) == set(range(-4, 5))
    for image, made, (down, right), flipped in zip(
        images / 255, view_of(view, images), drawn.shift.t().int().tolist(), drawn.flip, strict=True
    ):
        cropped = tv.crop(tv.pad(image, [4]), 4 + down, 4 + right, 32, 32)
        torch.testing.assert_close(made, tv.horizontal_flip(cropped) if flipped else cropped, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [8, 32, 96])
@pytest.mark.parametrize("exact", [True, False])
def test_blur_is_torchvisions(size, exact):
    view, images = View(blur=0.7), photos(12, size, size)
    drawn = drawn_for(view, images, size)
    assert 0 < (drawn.sigma > 0).sum() < len(images)
    expected = by_torchvision(view, images, size, drawn)
    torch.testing.assert_close(view_of(view, images, size, exact=exact), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [224, 32, 8])
def test_blur_kernel_is_a_tenth_of_the_side_odd_and_at_least_three(size):
    row = geometry.blur_matrix(torch.tensor([1e6]), size)[0, size // 2]
    assert int((row > 0).sum()) == {224: 23, 32: 3, 8: 3}[size]


def test_turns_are_exact_right_angles():
    view, images = View(rotate=0.8), photos(40)
    made, turns = view_of(view, images), drawn_for(view, images).turns
    assert set(turns.tolist()) == {0, 1, 2, 3}
    for i, image in enumerate(images / 255):
        assert torch.equal(made[i], torch.rot90(image, int(turns[i]), (1, 2)))


def test_cutout_is_a_square_of_the_mean_clipped_at_the_borders():
    view, images, mean = View(cutout=0.5), photos(50), (0.4, 0.5, 0.6)
    made = make_view(view, images, size=32, seed=(1, 2), mean=mean, std=(1.0,) * 3)
    whole = evaluation_view(images, 32, mean, (1.0,) * 3)
    centre = drawn_for(view, images).cutout.int()
    for i in range(len(images)):
        rows, columns = (slice(max(0, int(c) - 8), int(c) + 8) for c in centre[:, i])
        expected = whole[i].clone()
        expected[:, rows, columns] = 0
        assert torch.equal(made[i], expected)


# Colour


@pytest.mark.parametrize("number", range(4))
def test_exact_jitter_operations_are_torchvisions(number):
    ours = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation, colour.adjust_hue)[number]
    images = torch.cat(
        [photos(8) / 255, torch.rand(4, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5), torch.zeros(1, 3, 32, 32)]
    )
    factors = torch.linspace(-0.5, 0.5, len(images)) if number == 3 else torch.linspace(0, 2, len(images))
    expected = torch.stack([TV_ADJUST[number](image, f.item()) for image, f in zip(images, factors, strict=True)])
    torch.testing.assert_close(ours(images, factors[:, None, None, None]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_exact_chain_is_torchvisions(channels):
    view, images = replace(SIMCLR, solarize=0.3), photos(60, 40, 36, channels)
    drawn = drawn_for(view, images)
    expected = by_torchvision(view, images, 32, drawn)
    assert len(set(map(tuple, drawn.order.t().tolist()))) > 15  # most of the 24 orders, and none
    torch.testing.assert_close(view_of(view, images, exact=True), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("solarize", [0.0, 0.5])
def test_fast_is_exact_without_hue_and_where_no_clamp_acts(channels, solarize):
    view = replace(SIMCLR, jitter=1.0, jitter_scale=(0.3, 0.3, 0.3, 0.0), solarize=solarize)
    images = photos(100, channels=channels, low=90, high=150)
    # 1e-4: torchvision's luma weights add up to 0.9999, so its own operations do not commute any better.
    torch.testing.assert_close(view_of(view, images), view_of(view, images, exact=True), atol=1e-4, rtol=0)


def test_fast_contrast_pulls_to_the_mean_before_the_blur():
    images = torch.full((20, 1, 8, 8), 100, dtype=torch.uint8)
    images[:, :, 0] = 250  # a bright border, of which reflection blurs a part away
    view = View(jitter=1.0, jitter_probability=1.0, jitter_scale=(0.0, 0.9, 0.0, 0.0), blur=1.0, blur_sigma=(2.0, 2.0))
    inside = drawn_for(view, images, 8).contrast < 1  # where no clamp acts
    fast, exact = view_of(view, images, 8), view_of(view, images, 8, exact=True)
    torch.testing.assert_close(fast[inside], exact[inside], atol=1e-5, rtol=0)


def test_fast_stays_near_exact():
    images, no_hue = photos(150), replace(SIMCLR, jitter_scale=(0.8, 0.8, 0.8, 0.0))
    exact = view_of(SIMCLR, images, exact=True)
    jittered_by = (exact - view_of(replace(SIMCLR, jitter=0.0), images, exact=True)).abs().mean()
    assert (view_of(SIMCLR, images) - exact).abs().mean() < 0.25 * jittered_by  # these images are gaudy; CIFAR: 0.12
    clamps = (view_of(no_hue, images) - view_of(no_hue, images, exact=True)).abs().mean()
    assert clamps < 0.03 * jittered_by


def test_fast_hue_lies_nearer_to_hsv_than_yiq():
    images, shift = photos(100) / 255, 0.1
    expected = tv.adjust_hue(images, shift)
    drawn = replace(drawn_for(View(), images), hue=torch.full((100,), shift))
    ours = colour.fused(images, images.mean((2, 3)), drawn)
    yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    nearest = min(
        (torch.einsum("dc,nchw->ndhw", yiq.inverse() @ turn @ yiq, images).clamp(0, 1) - expected).abs().mean()
        for turn in (rotation(shift), rotation(-shift))
    )
    assert (ours - expected).abs().mean() < 0.8 * nearest


def rotation(shift: float) -> torch.Tensor:
    """Of I and Q, luma kept."""
    cos, sin = math.cos(2 * math.pi * shift), math.sin(2 * math.pi * shift)
    return torch.tensor([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])


def test_fast_hue_is_exact_at_a_third_of_the_circle():
    images = torch.rand(2, 3, 16, 16)
    drawn = drawn_for(View(), images, 16)
    turned = colour.fused(images, images.mean((2, 3)), replace(drawn, hue=torch.tensor([1 / 3, -1 / 3])))
    expected = torch.stack([tv.adjust_hue(images[0], 1 / 3), tv.adjust_hue(images[1], -1 / 3)])
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)


def test_grey_images_keep_brightness_and_contrast_only():
    images, view = photos(50, channels=1), View(jitter=0.5, grayscale=1.0)
    plain_view, no_hue = View(), replace(view, jitter_scale=(0.8, 0.8, 0.0, 0.0), grayscale=0.0)
    assert not torch.equal(view_of(view, images), view_of(plain_view, images))
    assert torch.equal(view_of(view, images), view_of(no_hue, images))


# RandAugment


def by_torchvisions_randaugment(image: torch.Tensor, name: str, magnitude: int, sign: int) -> torch.Tensor:
    spelled = {"autocontrast": "AutoContrast"}.get(name, "".join(part.capitalize() for part in name.split("_")))
    space, signed = v2.RandAugment._AUGMENTATION_SPACE[spelled]
    values = space(31, *image.shape[-2:])
    value = 0.0 if values is None else float(values[magnitude]) * (sign if signed else 1)
    return v2.RandAugment()._apply_image_or_video_transform(image, spelled, value, v2.InterpolationMode.NEAREST, {})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 9, 10, 17, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_randaugment_operation_is_torchvisions(name, magnitude, channels):
    images = torch.cat([photos(4, 30, 32, channels), photos(1, 30, 32, channels, 80, 81)]) / 255
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0])
    choices = torch.stack([torch.full((5,), float(list(OPERATIONS).index(name))), signs])[None]
    made = randaugment(images, magnitude, choices)
    for image, sign, ours in zip(images, signs, made, strict=True):
        expected = by_torchvisions_randaugment(image, name, magnitude, int(sign))
        differs = (ours - expected).abs() > 1e-5
        assert differs.float().mean() <= (0.002 if name == "rotate" else 0)  # a pixel may lie midway between two


@pytest.mark.parametrize("name", OPERATIONS)
def test_randaugment_of_an_image_does_not_depend_on_its_batch(name):
    images, signs = torch.rand(12, 3, 16, 16), torch.ones(12, 1, 1, 1)
    together = OPERATIONS[name](images, signs, 0.5)
    alone = [OPERATIONS[name](images[i : i + 1].clone(), signs[:1], 0.5) for i in range(12)]
    assert torch.equal(torch.cat(alone), together)


def test_equalize_is_pils():
    images = photos(6, 40, 24)
    made = OPERATIONS["equalize"](images / 255, torch.ones(6, 1, 1, 1), 0.0)
    for image, ours in zip(images, made, strict=True):
        expected = tv.pil_to_tensor(ImageOps.equalize(Image.fromarray(image.permute(1, 2, 0).numpy())))
        assert torch.equal((ours * 255).round(), expected.float())


def test_randaugment_draws_each_operation_and_sign_alike():
    drawn = draw_parameters(View(randaugment=(2, 10)), sizes(4000, 8, 8), 8, (5,)).randaugment  # [2, 2, N]
    counts = torch.bincount(drawn[:, 0].flatten().long(), minlength=len(OPERATIONS))
    assert len(counts) == len(OPERATIONS)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert abs(float(drawn[:, 1].mean())) < 0.05


def test_randaugment_view_goes_through_its_operations_in_turn():
    view, images = View(randaugment=(3, 12)), photos(20)
    choices = drawn_for(view, images).randaugment
    names = list(OPERATIONS)
    for i, made in enumerate(view_of(view, images)):
        expected = images[i] / 255
        for number, sign in choices[:, :, i].int().tolist():
            expected = by_torchvisions_randaugment(expected, names[number], 12, sign)
        assert ((made - expected).abs() > 1e-4).float().mean() < 0.01


# Randomness


def test_views_depend_on_the_seed_alone():
    images = photos(16)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = view_of(EVERYTHING, images)
    assert torch.equal(torch.get_rng_state(), before)  # nothing taken from the global generator …
    torch.manual_seed(1)
    assert torch.equal(view_of(EVERYTHING, images), first)  # … and nothing depends on it
    for other in ((1, 3), (2, 2), (2, 1), (1,), (12,), (1, 2, 0)):
        assert not torch.equal(view_of(EVERYTHING, images, seed=other), first)


def test_a_sample_does_not_depend_on_its_batch():
    images = photos(150)  # three pieces
    whole = view_of(replace(EVERYTHING, randaugment=(2, 10)), images)
    part = view_of(replace(EVERYTHING, randaugment=(2, 10)), images[:7])
    torch.testing.assert_close(whole[:7], part, atol=1e-6, rtol=0)


def test_changing_one_operation_leaves_the_draws_of_the_others():
    drawn = draw_parameters(EVERYTHING, sizes(50, 32, 32), 32, (3,))
    other = draw_parameters(replace(EVERYTHING, blur=0.0, grayscale=0.9), sizes(50, 32, 32), 32, (3,))
    changed = {name for name, values in vars(drawn).items() if not torch.equal(values, getattr(other, name))}
    assert changed == {"sigma", "grayscale"}


def test_views_of_a_batch_differ_and_extend_the_seed():
    images, settings = photos(8), {"size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    first, second, small = make_views([SIMCLR, SIMCLR, replace(SIMCLR, size=16)], images, seed=(4,), **settings)
    assert not torch.equal(first, second)
    assert torch.equal(second, make_view(SIMCLR, images, seed=(4, 1), **settings))
    assert small.shape == (8, 3, 16, 16)


@pytest.mark.parametrize(("size", "smallest", "blurs"), [(32, 0.1, (0, 0, 0)), (224, 0.05, (1, 0.1, 0.5))])
def test_multi_crop_is_two_large_views_and_small_ones_of_the_rest_of_the_areas(size, smallest, blurs):
    views = multi_crop(byol_views(size), size, 3, size // 2, 0.4)
    assert [view.size for view in views] == [None, None, *[size // 2] * 3]
    assert [view.crop for view in views] == [(0.4, 1.0), (0.4, 1.0), *[(smallest, 0.4)] * 3]
    assert [view.blur for view in views] == [*blurs[:2], *[blurs[2]] * 3]
    assert [view.solarize for view in views] == [0, 0.2, 0, 0, 0]
    made = make_views(views, photos(2, size, size), size=size, seed=(0,), mean=[0.5] * 3, std=[0.25] * 3)
    assert [view.shape[-1] for view in made] == [size, size, *[size // 2] * 3]
    assert not torch.equal(made[2], made[3])


def test_probabilities_are_kept():
    view = View(flip=0.3, jitter=1.0, jitter_probability=0.8, grayscale=0.2, blur=0.5, solarize=0.1, rotate=0.6)
    drawn, samples = draw_parameters(view, sizes(20000, 32, 32), 32, (9,)), 20000
    shares = {
        0.3: drawn.flip > 0, 0.8: drawn.order[0] >= 0, 0.2: drawn.grayscale > 0, 0.5: drawn.sigma > 0,
        0.1: drawn.solarize > 0, 0.6: drawn.turns > 0,
    }  # fmt: skip
    for probability, happened in shares.items():
        assert stats.binomtest(int(happened.sum()), samples, probability).pvalue > 1e-4
    turned = torch.bincount(drawn.turns)[1:]
    assert stats.chisquare(turned.numpy()).pvalue > 1e-4
    orders = torch.unique(drawn.order[:, drawn.order[0] >= 0], dim=1, return_counts=True)[1]
    assert len(orders) == 24
    assert stats.chisquare(orders.numpy()).pvalue > 1e-4


def test_parameters_are_independent_of_each_other():
    view = View(crop=(0.2, 0.5), shift=0.2, jitter=0.5, jitter_probability=1.0, blur=1.0, randaugment=(1, 10))
    drawn = draw_parameters(view, sizes(20000, 200, 200), 32, (7,))
    columns = [*drawn.box, *drawn.shift, drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue, drawn.sigma]
    rows = torch.stack([*columns, *drawn.cutout, *drawn.randaugment[0]])
    rows[0], rows[1] = drawn.box.prod(0), drawn.box[0] / drawn.box[1]  # area and shape; height and width hang together
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.035  # five standard deviations


def test_ranges_are_uniform():
    drawn = draw_parameters(
        View(jitter=0.5, jitter_probability=1.0, blur=1.0, shift=0.25), sizes(5000, 32, 32), 32, (6,)
    )
    spans = {
        "brightness": (0.6, 0.8),
        "contrast": (0.6, 0.8),
        "saturation": (0.6, 0.8),
        "hue": (-0.1, 0.2),
        "sigma": (0.1, 1.9),
    }
    for name, span in spans.items():
        assert stats.kstest(getattr(drawn, name).numpy(), "uniform", args=span).pvalue > 1e-4, name
    for shifts in drawn.shift:
        assert stats.chisquare(torch.bincount((shifts + 8).long()).numpy()).pvalue > 1e-4


def test_crop_area_is_uniform_and_its_shape_log_uniform():
    height, width = drawn_box(View(crop=(0.2, 0.5)), 2000, 2000)
    assert stats.kstest((height * width / 4e6).numpy(), "uniform", args=(0.2, 0.3)).pvalue > 1e-4
    log_ratio = (width / height).log().numpy()
    assert stats.kstest(log_ratio, "uniform", args=(math.log(3 / 4), 2 * math.log(4 / 3))).pvalue > 1e-4


def drawn_box(view: View, height: int, width: int) -> torch.Tensor:
    return draw_parameters(view, sizes(5000, height, width), 32, (8,)).box


def test_crops_are_distributed_as_torchvisions():
    view, image = View(crop=(0.08, 1.0)), torch.zeros(3, 48, 64)
    torch.manual_seed(0)
    theirs = [v2.RandomResizedCrop(32).make_params([image]) for _ in range(3000)]
    drawn = draw_parameters(view, sizes(3000, 48, 64), 32, (8,))
    ours = dict(zip(("top", "left", "height", "width"), [*drawn.corner, *drawn.box], strict=True))
    for name, values in ours.items():
        assert stats.ks_2samp(values.numpy(), [box[name] for box in theirs]).pvalue > 1e-4, name
    assert ((drawn.corner >= 0) & (drawn.corner + drawn.box <= torch.tensor([[48], [64]]))).all()


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10)])
def test_where_no_crop_fits_the_largest_allowed_box_in_the_middle_is_taken(height, width):
    expected = v2.RandomResizedCrop(32, scale=(0.95, 1.0)).make_params([torch.zeros(3, height, width)])
    drawn = draw_parameters(View(crop=(0.95, 1.0)), sizes(5000, height, width), 32, (8,))
    for values, names in ((drawn.box, ("height", "width")), (drawn.corner, ("top", "left"))):
        assert (values == torch.tensor([[expected[name]] for name in names])).all()


def test_crops_of_a_wide_image_fall_back_as_often_as_torchvisions():
    """Of 48 x 96 images some two fifths have no attempt that fits: all of those show the middle."""
    torch.manual_seed(0)
    theirs = [v2.RandomResizedCrop(32, scale=(0.5, 1.0)).make_params([torch.zeros(3, 48, 96)]) for _ in range(3000)]
    drawn = draw_parameters(View(crop=(0.5, 1.0)), sizes(3000, 48, 96), 32, (8,))
    ours = dict(zip(("top", "left", "height", "width"), [*drawn.corner, *drawn.box], strict=True))
    central = {"top": 0, "left": 16, "height": 48, "width": 64}
    share = torch.stack([ours[name] == value for name, value in central.items()]).all(0).float().mean()
    expected = sum(box == central for box in theirs) / len(theirs)
    assert expected > 0.3
    assert share == pytest.approx(expected, abs=0.05)  # four standard errors of the difference
    for name, values in ours.items():
        assert stats.ks_2samp(values.numpy(), [box[name] for box in theirs]).pvalue > 1e-4, name


# What goes in and what comes out


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 5, 9), (1, 1, 1), (3, 40, 33)])
def test_any_image_size_and_all_operations_together(channels, height, width, exact):
    images = photos(6, height, width, channels)
    for view in (EVERYTHING, replace(EVERYTHING, randaugment=(2, 30))):
        for size in (1, 7, 32):
            made = view_of(view, images, size, exact=exact)
            assert made.shape == (6, channels, size, size)
            assert made.dtype == torch.float32
            assert made.is_contiguous()
            assert made.isfinite().all()
            assert made.min() >= 0
            assert made.max() <= 1 + 1e-6


def test_an_empty_batch_gives_an_empty_batch():
    for view in (EVERYTHING, replace(EVERYTHING, randaugment=(2, 10))):
        assert view_of(view, photos(4)[:0]).shape == (0, 3, 32, 32)


def test_memory_layout_autocast_and_gradients_change_nothing():
    images = photos(10, 20, 30)
    expected = view_of(EVERYTHING, images)
    assert torch.equal(view_of(EVERYTHING, images.to(memory_format=torch.channels_last)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(view_of(EVERYTHING, images), expected)
    before = images.clone()
    view_of(EVERYTHING, images, exact=True)
    assert torch.equal(images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("exact", [True, False])
def test_a_gpu_makes_the_same_views(exact):
    images = photos(64)
    for view in (EVERYTHING, View(randaugment=(2, 10), flip=0.5)):
        made = view_of(view, images.cuda(), exact=exact).cpu()
        assert ((made - view_of(view, images, exact=exact)).abs() > 1e-4).float().mean() < 0.001


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.zeros(2, 3, 8, 8), "float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\[3, 8, 8\]"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), "1 or 3 channels"),
        (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), "at least one pixel"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "1 channels need as many means"),
    ],
)
def test_other_images_are_refused(images, says):
    with pytest.raises(ConfigError, match=says):
        evaluation_view(images, 8, (0.5,) * 3, (0.5,) * 3)
