"""The probe by stage: what the stages are, against the networks' own layers, and where the best one is."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from eagleray.config import load_run
from eagleray.contracts.encoder import Encoder
from eagleray.encoders.convnet import ConvNet
from eagleray.encoders.pretrained import Pretrained
from eagleray.evaluators.linear import linear
from eagleray.evaluators.stages import Joined, Stages
from eagleray.runs.assemble import Assembly, assemble, blueprint
from eagleray.runs.evaluation import Encoded, Evaluation

RUN = ["data.limit=300", "batch_size=40", "threads=1", "device=cpu", "precision=fp32", "evaluate.stages.when=end"]
MEAN = ["encoder=convnet", "encoder.grid=1", "encoder.last=1"]  # its features are the last stage
SMALL = {
    "convnet": [*MEAN, "encoder.width=8"],
    "shallow": [*MEAN, "encoder.width=8", "encoder.depth=2"],
    "resnet": ["encoder=resnet18", "image_size=16"],
    "vit": ["encoder=vit_tiny", "encoder.dim=32", "encoder.depth=5"],
    "class": ["encoder=vit_tiny", "encoder.dim=32", "encoder.depth=2", "encoder.pool=class"],
}


def built(name: str, *settings: str) -> Assembly:
    return assemble(load_run(None, [*RUN, *SMALL[name], *settings]))


def seen(network: nn.Module, layers: list[nn.Module], images: Tensor) -> list[Tensor]:
    """Return what layers give, seen by hooks."""
    given: list[Tensor] = []
    hooks = [each.register_forward_hook(lambda *call: given.append(call[2].clone())) for each in layers]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return given


def layers_of(encoder: Any) -> list[nn.Module]:
    if encoder.name == "convnet":
        return [each for each in encoder.blocks if isinstance(each, nn.ReLU)]
    if encoder.name == "resnet18":
        return [getattr(encoder.network, f"layer{number}") for number in range(1, 5)]
    return list(encoder.vit.blocks)


@pytest.mark.parametrize("name", SMALL)
def test_stages_are_the_layers_and_the_last_is_the_features(name: str):
    encoder = built(name).method.eval().encoder
    images = torch.randn(3, 1, 16 if name == "resnet" else 8, 16 if name == "resnet" else 8)
    with torch.no_grad():
        stages, features = encoder.stages(images), encoder(images)
    torch.testing.assert_close(stages[-1], features)
    outputs = seen(encoder, layers_of(encoder), images)
    if encoder.has_tokens:
        norm: Any = encoder.vit.norm  # type: ignore[union-attr]
        outputs = [norm(each) for each in outputs]
        pooled = [each[:, 0] if name == "class" else each[:, 1:].mean(1) for each in outputs]
    else:
        pooled = [each.mean((2, 3)) for each in outputs]
    assert len(stages) == len(pooled)
    for stage, expected in zip(stages, pooled, strict=True):
        torch.testing.assert_close(stage, expected)


def test_the_stages_of_timm_are_its_feature_maps():
    run = load_run(None, [*RUN, "encoder=test_efficientnet", "image_size=32"])
    encoder = assemble(run).method.eval().encoder
    maps = timm.create_model("test_efficientnet", features_only=True, in_chans=1).eval()
    own: Any = encoder.network
    own_state = own.state_dict()
    maps.load_state_dict({name: own_state[name] for name in maps.state_dict()})
    stem: Any = maps.conv_stem
    stem.stride = own.conv_stem.stride  # halved for small images
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        expected = [each.mean((2, 3)) for each in maps(images)]
        for stage, one in zip(encoder.stages(images), expected, strict=True):
            torch.testing.assert_close(stage, one)


@pytest.mark.parametrize(
    ("stages", "kept"), [(1, [1]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (5, [2, 3, 4, 5]), (12, [3, 6, 9, 12])]
)
def test_a_quarter_ends_after_a_quarter_of_the_stages(stages: int, kept: list[int]):
    class Counting(Encoder):
        def stages(self, images: Tensor) -> list[Tensor]:
            return [torch.full((len(images), 1), float(number)) for number in range(1, stages + 1)]

    joined = Joined(Counting("counting", None, 8, 1))  # type: ignore[arg-type]
    assert joined(torch.zeros(2, 1, 8, 8)).tolist() == [kept, kept]


@pytest.mark.parametrize("name", ["convnet", "shallow"])
def test_each_stage_is_the_probe_of_its_features(name: str, monkeypatch: pytest.MonkeyPatch):
    one = built(
        name,
        "evaluate.linear.when=never",
        "evaluate.knn.when=never",
        "evaluate.pairs.when=never",
        "evaluate.label_free.when=never",
        "evaluate.collapse.when=never",
    )
    passes: list[object] = []
    encode = Evaluation.encode

    def counted(self: Evaluation, network: Any, images: Any, *rest: Any) -> Tensor:
        passes.append((images, network))
        return encode(self, network, images, *rest)

    monkeypatch.setattr(Evaluation, "encode", counted)
    found = one.evaluation(one.method, one.autocast, final=True)
    assert len(set(passes)) == len(passes) == 4  # validation as it is; train, validation and test by stage
    assert {name for name in found if "stage_" in name and "test" not in name} == {
        f"stage_{number + 1}" for number in range(len(layers_of(one.method.encoder)))
    }
    method, data = one.method.eval(), one.data
    for number in range(len(layers_of(method.encoder))):

        def stage(images: Tensor, number: int = number) -> Tensor:
            with torch.no_grad():
                return method.encoder.stages(images)[number]

        assert data.validation is not None
        assert data.test is not None
        there = Encoded(one.evaluation, stage, method, one.autocast, data, data.validation)
        tested = there.on(data.test, chosen_by=data.validation)
        assert found[f"stage_{number + 1}"] == linear(there.train, there.evaluated)["linear"]
        alone = linear(tested.train, tested.evaluated, validation=tested.validation)
        assert found[f"test_stage_{number + 1}"] == alone["linear"]
    best = found[f"stage_{int(found['best_stage'])}"]
    assert best == max(value for key, value in found.items() if key.startswith("stage_"))


def test_the_best_stage_is_below_a_last_layer_that_forgets():
    one = built("convnet")
    last: Any = one.method.encoder.blocks[-3]  # type: ignore[index]
    nn.init.zeros_(last.weight)
    found = one.evaluation(one.method, one.autocast, final=True)
    assert found["best_stage"] < 4
    assert found["stage_4"] < 0.25 < found[f"stage_{int(found['best_stage'])}"]


@pytest.mark.parametrize(
    "settings", [["method=dino", "method.prototypes=16"], ["method=simclr_v2"], ["method=ibot", "method.prototypes=16"]]
)
def test_the_stages_are_those_of_the_network_that_is_evaluated(settings: list[str]):
    encoder = SMALL["vit"] if "ibot" in settings[0] else SMALL["convnet"]
    one = assemble(load_run(None, [*RUN, *encoder, *settings]))
    assert set(Stages.metrics) <= set(one.evaluation(one.method, one.autocast, final=True))


@pytest.mark.parametrize("settings", [[], ["method=simclr_v2"]])
def test_a_network_of_another_run_has_the_stages_of_that_run(settings: list[str]):
    """Also where more of the run is taken than its encoder."""
    run = load_run(None, [*RUN, *SMALL["convnet"], *settings])
    plan = blueprint(run, assemble(run).method)
    taken = Pretrained("pretrained", Pretrained.Config(run=plan), 8, 1).eval()
    source = next(each for each in taken.network.modules() if isinstance(each, ConvNet))
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for stage, expected in zip(taken.stages(images), source.stages(images), strict=True):
            assert torch.equal(stage, expected)
