"""Lab against known colours, those of scikit-image; the bins of the a-b plane."""

import pytest
import torch

from eagleray.blocks.lab import ab_bins, lab, soft_bins, srgb

KNOWN = {  # sRGB -> Lab, of scikit-image 0.26's rgb2lab
    (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
    (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
    (0.5, 0.5, 0.5): (53.39, 0.0, 0.0),
    (1.0, 0.0, 0.0): (53.2406, 80.0923, 67.2028),
    (0.0, 1.0, 0.0): (87.7351, -86.1830, 83.1797),
    (0.0, 0.0, 1.0): (32.2957, 79.1856, -107.8573),
    (0.2, 0.4, 0.6): (42.0080, -0.1540, -32.8429),
    (0.02, 0.01, 0.03): (0.9487, 1.3759, -1.6949),
    (0.9, 0.8, 0.1): (81.8391, -6.9674, 79.4503),
}


def pixels(colours: list[tuple[float, ...]]) -> torch.Tensor:
    return torch.tensor(colours, dtype=torch.float64).t()[None, :, :, None]


def test_known_colours():
    found = lab(pixels(list(KNOWN)))
    torch.testing.assert_close(found, pixels(list(KNOWN.values())), rtol=0, atol=0.005)


def test_known_colours_are_found_again():
    found = srgb(pixels(list(KNOWN.values())))
    torch.testing.assert_close(found, pixels(list(KNOWN)), rtol=0, atol=1e-4)


def test_a_colour_that_srgb_lacks_gets_values_of_srgb():
    found = srgb(pixels([(50.0, 120.0, -120.0), (101.0, 0.0, 0.0), (0.0, 50.0, 0.0)]))
    assert found.min() == 0
    assert found.max() == pytest.approx(1)


def test_the_conversion_has_finite_gradients_at_black():
    images = torch.zeros(1, 3, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(lab(images).sum(), images)
    assert gradient.isfinite().all()


@pytest.fixture(scope="module")
def bins() -> torch.Tensor:
    return ab_bins()


def test_the_cube_of_colours_has_261_bins_of_ten(bins: torch.Tensor):
    assert bins.shape == (261, 2)
    assert not (bins % 10).any()
    assert len(set(map(tuple, bins.tolist()))) == 261
    assert [0.0, 0.0] in bins.tolist()


def test_no_colour_inside_the_cube_has_a_bin_of_its_own(bins: torch.Tensor):
    inside = torch.rand(1, 3, 300, 300, generator=torch.Generator().manual_seed(0))
    found = (lab(inside)[0, 1:].flatten(1).t() / 10).round() * 10
    assert set(map(tuple, (found + 0).tolist())) <= set(map(tuple, bins.tolist()))


def test_soft_bins_are_gaussians_over_the_ten_nearest(bins: torch.Tensor):
    colours = torch.tensor([[3.0, -7.0], [40.0, 40.0], [93.0, 66.0]], dtype=torch.float64)
    found = soft_bins(colours, bins)
    for colour, row in zip(colours.tolist(), found, strict=True):
        squares = [(x - colour[0]) ** 2 + (y - colour[1]) ** 2 for x, y in bins.tolist()]
        nearest = sorted(squares)[:10]
        expected = torch.tensor([-square / 50 for square in nearest], dtype=torch.float64).exp()
        torch.testing.assert_close(row.sort(descending=True).values[:10], expected / expected.sum())
        assert int((row > 0).sum()) == 10
        assert squares[int(row.argmax())] == nearest[0]
