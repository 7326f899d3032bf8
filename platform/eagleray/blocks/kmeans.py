"""K-means of points on any device (Lloyd 1982), the same on every worker that has the same points."""

import torch
from torch import Tensor

BLOCK = 2**22  # numbers computed at a time: 16 MB


def kmeans(points: Tensor, clusters: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Cluster points by Lloyd's algorithm, [N, D] -> [N] int64.

    It starts from random points. An empty cluster gets one side of another. The same points and generator give the same
    clusters, except that a GPU sums in any order and may differ in the last digits.
    """
    start = torch.randperm(len(points), generator=generator)[:clusters].to(points.device)
    assigned = split_empty(points, nearest(points, points[start]), clusters, generator)
    for _ in range(iterations):
        before, centroids = assigned, means(points, assigned, clusters)
        assigned = split_empty(points, nearest(points, centroids), clusters, generator)
        if torch.equal(assigned, before):
            break
    return assigned


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Return each point's nearest centroid.

    [N, D], [K, D] -> [N] int64.
    """
    offset = centroids.square().sum(1) / 2
    blocks = points.split(max(1, BLOCK // len(centroids)))
    return torch.cat([(block @ centroids.T - offset).argmax(1) for block in blocks])


def means(points: Tensor, assigned: Tensor, clusters: int) -> Tensor:
    """Return the mean of each cluster's points.

    [N, D], [N] -> [clusters, D]; 0 for an empty cluster.
    """
    totals = points.new_zeros(clusters, points.shape[1]).index_add_(0, assigned, points)
    return totals / assigned.bincount(minlength=clusters).clamp(min=1).unsqueeze(1)


def split_empty(points: Tensor, assigned: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Give every empty cluster part of another (DeepCluster, 1807.05520, section 3.3).

    The points on one side of its centre; cluster and direction are drawn at random. The result is the same as with two
    slightly different copies of that centre.
    """
    sizes = assigned.bincount(minlength=clusters).cpu()
    for empty in (sizes == 0).nonzero().flatten().tolist():
        donor = int(torch.multinomial((sizes - 1).clamp(min=0).float(), 1, generator=generator))
        members = (assigned == donor).nonzero().flatten()
        apart = points[members] - points[members].mean(0)
        direction = torch.randn(points.shape[1], generator=generator).to(points)
        moved = members[apart @ direction > 0]
        assigned[moved] = empty
        sizes[empty], sizes[donor] = len(moved), len(members) - len(moved)
    return assigned
