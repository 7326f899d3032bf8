"""`evaluate.size`, `evaluate.mirror`: images are encoded at another size than in training, and mirrored too."""

import pytest
import torch

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


@pytest.mark.parametrize("mirror", [False, True])
def test_training_sees_views_of_the_image_size_and_evaluation_the_other(mirror: bool):
    built = assemble(run_of("evaluate.size=12", f"evaluate.mirror={mirror}"))
    batch = next(iter(built.loader.epoch(0, 0)))
    assert {view.shape[-1] for view in batch.views} == {8}
    assert built.data.validation is not None
    info, known = built.loader.info, []
    for images in (built.data.train, built.data.validation):
        (pixels,) = images.batches([torch.arange(len(images))])
        with torch.no_grad():
            view = evaluation_view(pixels, 12, info.mean, info.std)
            features = built.method.eval().encode(view)
            if mirror:
                features = (features + built.method.encode(view.flip(3))) / 2
        assert images.labels is not None
        known.append(Features(features, torch.from_numpy(images.labels)))
    measured = built.evaluation(built.method, built.autocast, final=False)
    assert measured["knn_5"] == knn(*known, ks=[5])[0]
    assert dict(measured) != dict(assemble(run_of()).evaluation(built.method, built.autocast, final=False))


def test_networks_that_take_one_size_are_refused():
    with pytest.raises(ConfigError, match=r"evaluate\.size=16: encoder=vit_tiny has a position for each patch"):
        load_run(None, ["encoder=vit_tiny", "evaluate.size=16"])
    swin = ["encoder=timm", "encoder.model=swin_tiny_patch4_window7_224", "image_size=32", "evaluate.size=64"]
    with pytest.raises(ConfigError, match=r"evaluate\.size=64: encoder=timm was built for images of 32 pixels"):
        assemble(load_run(None, ["data.limit=160", "batch_size=40", "device=cpu", *swin]))


def test_floors_of_pixels_see_no_enlarged_or_mirrored_images_and_those_of_networks_do():
    same, larger, mirrored = run_of(), run_of("evaluate.size=16"), run_of("evaluate.mirror=true")
    for kind in ("pixels", "kmeans"):
        assert measure(kind, same) == measure(kind, larger) == measure(kind, mirrored)
        assert measure(kind, run_of("image_size=5", "evaluate.size=8")) == measure(kind, same)
    assert len({measure("random", run)["knn_5"] for run in (same, larger, mirrored)}) == 3
    names = [floor.point for floor in floors([same, larger, mirrored], ["pixels", "random"], "knn")]
    assert names == ["raw pixels digits", *(f"random init convnet digits{number}" for number in ("", " 2", " 3"))]


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
