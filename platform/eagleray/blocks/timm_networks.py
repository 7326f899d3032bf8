"""Networks of timm, with new weights or public ones.

Nothing is downloaded: public weights come from a file or from the cache of the Hugging Face hub.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from pydantic import Field
from torch import Tensor, nn

from eagleray.contracts.errors import ConfigError
from eagleray.contracts.paths import Place
from eagleray.storage.mirror import input_at_hand

Weights = Path | Literal["timm"]
PublicWeights = Annotated[  # the type of the setting `encoder.weights`
    Place | Literal["timm"] | None,
    Field(
        description="public weights to start from: a .safetensors or .pth file, or timm for those in the local cache "
        "of the Hugging Face hub (nothing is downloaded); null: new ones"
    ),
]


def create_network(architecture: str, weights: Weights | None, **options: Any) -> nn.Module:
    """Build a network of timm without its classifier.

    Dropout and stochastic depth are off: they would draw from torch's global generator, whose state no checkpoint
    holds.

    Args:
        architecture: its name in timm.
        weights: public weights; timm adapts them to the channels, the image size and the patch size.
        options: of `timm.create_model`.

    Raises:
        ConfigError: there are no such weights, or they do not fit.
    """
    public: dict[str, Any] = {}
    if weights is not None:
        state = read_weights(architecture, weights)
        public = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state, "num_classes": 0}}
    try:
        network = timm.create_model(architecture, num_classes=0, **public, **options)
    except Exception as error:  # timm converts the weights of many authors, and expects their names
        if weights is None:
            raise
        raise misfit(architecture, weights, error) from error
    for part in network.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        elif hasattr(part, "drop_prob"):
            part.drop_prob = 0.0  # type: ignore[assignment]
    return network


def read_weights(architecture: str, weights: Weights) -> dict[str, Tensor]:
    """Read public weights, without those of the classifier.

    Raises:
        ConfigError: there is no such file, or it holds no weights.
    """
    file = cached(architecture) if weights == "timm" else input_at_hand(weights)
    try:
        state = timm.models.load_state_dict(str(file), weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"encoder.weights={file} does not exist") from None
    except Exception as error:  # safetensors, pickle and zip have errors of their own
        what = str(error).partition("\n")[0]
        raise ConfigError(f"encoder.weights={file} is not a file of weights that can be read: {what}") from error
    config = timm.get_pretrained_cfg(architecture)
    names = (config.classifier if config else None) or ()
    heads = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    return {name: value for name, value in state.items() if not name.startswith(heads)} if heads else state


def cached(architecture: str) -> Path:
    """Return the file of timm's own weights on this machine.

    Raises:
        ConfigError: they are not here, or timm has none.
    """
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(architecture)
    if config is None or not (config.hf_hub_id or config.url):
        raise ConfigError(f"encoder.weights=timm: timm has no weights of {architecture}; leave it out, or name a file")
    url = config.url if isinstance(config.url, str) else None
    places = [Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])] if url else []
    if config.hf_hub_id:
        names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        found = [try_to_load_from_cache(config.hf_hub_id, name) for name in names]
        places = [*(Path(path) for path in found if isinstance(path, str)), *places]
    for place in places:
        if place.is_file():
            return place
    fetch = f"`hf download {config.hf_hub_id}`" if config.hf_hub_id else url
    raise ConfigError(
        f"encoder.weights=timm: the weights of {architecture} are not on this machine, and none are downloaded during "
        f"a run; fetch them once with {fetch}, or name a file: encoder.weights=FILE.safetensors"
    )


def misfit(architecture: str, weights: Weights, error: Exception) -> ConfigError:
    """Return the error for weights of another network."""
    why = " ".join(" ".join(str(error).splitlines()[1:3] or [f"it has no {error}"]).split())[:200]
    return ConfigError(f"encoder.weights={weights} does not fit {architecture}: {why}")
