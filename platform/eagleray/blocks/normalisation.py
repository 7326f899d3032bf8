"""Conversions of images that are normalised by channel."""

from torch import Tensor

from eagleray.contracts.batch import DataInfo


def renormalised(images: Tensor, now: DataInfo, then: DataInfo) -> Tensor:
    """Convert normalised images to another mean and deviation.

    They were normalised for the data `now`, and become so for the data `then`.
    """
    mean, std, new_mean, new_std = (
        images.new_tensor(values).view(-1, 1, 1) for values in (now.mean, now.std, then.mean, then.std)
    )
    return images * (std / new_std) + (mean - new_mean) / new_std
