"""The targets of methods that predict what a teacher makes of each patch."""

from torch import Tensor

from eagleray.blocks.distributed import all_reduce_mean
from eagleray.contracts.metric import Metric

TARGET_VARIANCE = Metric(
    "share of the targets' mean square that differs between images: 0 if all images have the same targets",
    no_goal="it grows with what cannot be predicted, too",
)


def variance_over_images(targets: Tensor) -> Tensor:
    """Return the variance over the images of all workers, averaged over patches and channels, [n, L, D] -> [].

    It is this worker's part: its mean over workers is exact.
    """
    return (targets - all_reduce_mean(targets.mean(0))).square().mean()
