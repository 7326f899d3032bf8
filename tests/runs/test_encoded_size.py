"""`evaluate.size`: images are encoded at another size than the views of training."""

import pytest
import torch

from eagleray.augment import evaluation_view
from eagleray.config import Run, load_run
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.features import Features
from eagleray.evaluators.knn import knn
from eagleray.runs.assemble import assemble
from eagleray.runs.floors import floors, measure

TINY = ["data.limit=160", "batch_size=40", "epochs=1", "encoder.width=8", "threads=1", "precision=fp32", "device=cpu"]


def run_of(*more: str) -> Run:
    return load_run(None, [*TINY, "evaluate.protocols=[knn]", *more])


def test_training_sees_views_of_the_image_size_and_evaluation_the_other():
    built = assemble(run_of("evaluate.size=12"))
    batch = next(iter(built.loader.epoch(0, 0)))
    assert {view.shape[-1] for view in batch.views} == {8}
    assert built.data.validation is not None
    info, known = built.loader.info, []
    for images in (built.data.train, built.data.validation):
        (pixels,) = images.batches([torch.arange(len(images))])
        with torch.no_grad():
            features = built.method.eval().encode(evaluation_view(pixels, 12, info.mean, info.std))
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


def test_floors_of_pixels_see_no_enlarged_images_and_those_of_networks_do():
    same, larger = run_of(), run_of("evaluate.size=16")
    for kind in ("pixels", "kmeans"):
        assert measure(kind, same) == measure(kind, larger)
        assert measure(kind, run_of("image_size=5", "evaluate.size=8")) == measure(kind, same)
    assert measure("random", same) != measure("random", larger)
    names = [floor.point for floor in floors([same, larger], ["pixels", "random"], "knn")]
    assert names == ["raw pixels digits", "random init convnet digits", "random init convnet digits 2"]
