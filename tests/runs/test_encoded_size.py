"""`evaluate.size`, `mirror`, `shift`: images are encoded at another size than in training, and copies of them too."""

import pytest
import torch
from torch import Tensor

from eagleray.augment import evaluation_view
from eagleray.config import Run, load_run
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.features import Features
from eagleray.contracts.view import View
from eagleray.evaluators.knn import knn
from eagleray.runs.assemble import assemble
from eagleray.runs.evaluation import Encoded
from eagleray.runs.floors import floors, measure

TINY = ["data.limit=160", "batch_size=40", "epochs=1", "encoder.width=8", "threads=1", "precision=fp32", "device=cpu"]


def run_of(*more: str) -> Run:
    return load_run(None, [*TINY, "evaluate.protocols=[knn]", *more])


@pytest.mark.parametrize(("mirror", "shift"), [(False, 0), (True, 0), (True, 2)])
def test_training_sees_views_of_the_image_size_and_evaluation_the_other(mirror: bool, shift: int):
    built = assemble(run_of("evaluate.size=12", f"evaluate.mirror={mirror}", f"evaluate.shift={shift}"))
    batch = next(iter(built.loader.epoch(0, 0)))
    assert {view.shape[-1] for view in batch.views} == {8}
    assert built.data.validation is not None
    info, known = built.loader.info, []
    for images in (built.data.train, built.data.validation):
        (pixels,) = images.batches([torch.arange(len(images))])
        with torch.no_grad():
            view = evaluation_view(pixels, 12, info.mean, info.std)
            copies = [each for one in moved(view, shift) for each in ([one, one.flip(3)] if mirror else [one])]
            features = torch.stack([built.method.eval().encode(each) for each in copies]).mean(0)
        assert images.labels is not None
        known.append(Features(features, torch.from_numpy(images.labels)))
    measured = built.evaluation(built.method, built.autocast, final=False)
    assert measured["knn_5"] == knn(*known, ks=[5])[0]
    assert dict(measured) != dict(assemble(run_of()).evaluation(built.method, built.autocast, final=False))


def moved(images: Tensor, shift: int) -> list[Tensor]:
    """Return images and, moved in four directions, copies: a pixel that comes from outside is the nearest one."""
    side = torch.arange(images.shape[-1])
    before, after = ((side + step).clamp(0, len(side) - 1) for step in (-shift, shift))
    copies = [images[:, :, before], images[:, :, after], images[..., before], images[..., after]]
    return [images, *copies] if shift else [images]


def test_networks_that_take_one_size_are_refused():
    with pytest.raises(ConfigError, match=r"evaluate\.size=16: encoder=vit_tiny has a position for each patch"):
        load_run(None, ["encoder=vit_tiny", "evaluate.size=16"])
    swin = ["encoder=timm", "encoder.model=swin_tiny_patch4_window7_224", "image_size=32", "evaluate.size=64"]
    with pytest.raises(ConfigError, match=r"evaluate\.size=64: encoder=timm was built for images of 32 pixels"):
        assemble(load_run(None, ["data.limit=160", "batch_size=40", "device=cpu", *swin]))


def test_floors_of_pixels_see_no_copies_of_images_and_no_enlarged_ones_and_those_of_networks_do():
    same, larger, mirrored, shifted = (
        run_of(*each) for each in ([], ["evaluate.size=16"], ["evaluate.mirror=true"], ["evaluate.shift=1"])
    )
    for kind in ("pixels", "kmeans"):
        assert measure(kind, same) == measure(kind, larger) == measure(kind, mirrored) == measure(kind, shifted)
        assert measure(kind, run_of("image_size=5", "evaluate.size=8")) == measure(kind, same)
    assert len({tuple(measure("random", run).values()) for run in (same, larger, mirrored, shifted)}) == 4
    names = [floor.point for floor in floors([same, larger, mirrored, shifted], ["pixels", "random"], "knn")]
    assert names == ["raw pixels digits", *(f"random init convnet digits{number}" for number in ("", " 2", " 3", " 4"))]


def test_a_classifier_s_logits_are_means_over_both_ways_and_so_are_features_of_views():
    labels = ["method=supervised", "labels.per_class=5"]
    built = assemble(run_of(*labels, "evaluate.mirror=true"))
    built.method.eval()
    assert built.data.validation is not None
    encoded = Encoded(
        built.evaluation, built.method.encode, built.method, built.autocast, built.data, built.data.validation
    )
    (pixels,) = built.data.validation.batches([torch.arange(len(built.data.validation))])
    view = built.loader.evaluation_view(pixels)
    with torch.no_grad():
        logits = (built.method.classify(view) + built.method.classify(view.flip(3))) / 2
    torch.testing.assert_close(encoded.logits.features, logits)
    (views,) = encoded.views([View()], most=len(built.data.validation))
    torch.testing.assert_close(views.features, encoded.evaluated.features)
