"""Optimizers as the methods' papers use them.

Which parameters decay, and how rates follow the progress.
"""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from eagleray.blocks.schedules import cosine, warmup_cosine, warmup_steps
from eagleray.contracts.batch import Progress
from eagleray.contracts.method import Method, ParameterGroup
from eagleray.contracts.recipe import Recipe

# Embeddings that are matrices, but are starting values and not weights that should decay.
_POSITIONS = ("pos_embed", "cls_token", "mask_token", "reg_token")


def make_optimizer(method: Method, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer.

    Weights decay, all other parameters do not. LARS adapts the learning rate of weights only (You et al. 2017,
    1708.03888; as SimCLR and BYOL do), whether or not they decay. Muon orthogonalises the momentum of the encoder's
    weights, a convolution's as a matrix with a row for each output (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/), and makes steps as large as AdamW's (Liu et al. 2025, 2502.16982,
    equation 4); AdamW trains all else, heads too, whose matrices are the largest. The method's `parameter_groups`
    override this for its parts.
    """
    own = {parameter: group for group in method.parameter_groups() for parameter in group.module.parameters()}
    orthogonal = set(method.encoder.parameters()) if recipe.name == "muon" else set()
    kinds: dict[tuple[bool, bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            group = own.get(parameter, ParameterGroup(method))
            is_plain = not decays(name, parameter, group.decay)
            is_orthogonal = parameter in orthogonal and not is_plain and decays(name, parameter)
            kinds.setdefault((group.schedule == "constant", is_plain, group.lr, is_orthogonal), []).append(parameter)
    # What Muon does not train, timm trains by AdamW where a group has no Nesterov's momentum, else by NAdamW.
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": 0.0, "constant": constant, "decays": not is_plain, "factor": factor}
        | ({"use_fallback": not is_orthogonal, "nesterov": is_orthogonal} if recipe.name == "muon" else {})
        for (constant, is_plain, factor, is_orthogonal), params in sorted(kinds.items(), key=lambda each: each[0])
    ]
    # On a GPU one kernel for many parameters; None: as torch chooses.
    fused = True if next(method.parameters()).is_cuda else None
    if recipe.name == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, recipe.beta2), fused=fused)
    if recipe.name == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)
    if recipe.name == "muon":
        from timm.optim.muon import Muon

        return Muon(
            groups,
            lr=recipe.lr,
            momentum=recipe.momentum,
            betas=(recipe.momentum, recipe.beta2),
            ns_coefficients="original",  # of the Newton-Schulz iteration: those of the source
        )
    from timm.optim.lars import Lars  # it takes a second to import

    for group in groups:
        group["always_adapt"] = group["decays"]
    # timm annotates its default 0.9 as an int.
    return Lars(groups, lr=recipe.lr, momentum=recipe.momentum, trust_coeff=0.001)  # pyright: ignore[reportArgumentType]


def decays(name: str, parameter: torch.Tensor, on: str = "weights") -> bool:
    """Return whether weight decay acts on a parameter.

    `on` is weights, matrices or nothing.
    """
    is_token = any(part in name for part in _POSITIONS)
    return on != "nothing" and parameter.ndim > 1 and (on == "matrices" or not is_token)


def set_rates(optimizer: Optimizer, recipe: Recipe, batch_size: int, progress: Progress) -> float:
    """Set this step's learning rate and weight decay.

    Returns the recipe's learning rate.
    """
    peak = recipe.peak_lr(batch_size)
    constant = warmup_cosine(peak, peak, recipe.warmup_epochs, progress)
    lr = (
        warmup_steps(peak, recipe.drops, recipe.drop_factor, recipe.warmup_epochs, progress)
        if recipe.drops
        else warmup_cosine(peak, peak * recipe.final_lr, recipe.warmup_epochs, progress)
    )
    final = recipe.weight_decay if recipe.final_weight_decay is None else recipe.final_weight_decay
    decay = cosine(recipe.weight_decay, final, progress.fraction)
    for group in optimizer.param_groups:
        group["lr"] = (constant if group["constant"] else lr) * group["factor"]
        group["weight_decay"] = decay if group["decays"] else 0.0
    return lr
