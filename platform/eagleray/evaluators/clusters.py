"""Clusters of the features beside the classes: k-means with as many clusters as classes, half and twice as many."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field

from eagleray.contracts.evaluator import Encodings, Evaluator, Found
from eagleray.contracts.features import Features, evenly
from eagleray.contracts.metric import CHOSEN, Metric, Need, When

LABELS: frozenset[Need] = frozenset({"labels"})
TIMES = {"": 1.0, "_half": 0.5, "_twice": 2.0}  # clusters by classes; the end of a metric's name
EQUAL = 0.02  # homogeneity and completeness that differ by no more are called alike


class Clusters(Evaluator):
    """Agreement of k-means clusters with the classes (NMI, ARI, purity, homogeneity, completeness)."""

    class Config(BaseModel, frozen=True, extra="forbid"):
        """What is clustered."""

        images: Annotated[int, Field(ge=2, description="at most this many evaluated images, evenly spaced")] = 10_000

    config: Config
    when: ClassVar[When] = "never"  # k-means takes seconds

    metrics: ClassVar[dict[str, Metric]] = {
        "nmi": Metric(
            "normalised mutual information of clusters and classes", "higher", needs=LABELS, no_interval=CHOSEN
        ),
        "ari": Metric(
            "adjusted Rand index of clusters and classes: 0 as by chance, 1 the same",
            "higher",
            needs=LABELS,
            no_interval=CHOSEN,
        ),
        "purity": Metric(
            "share of the images that are of the most frequent class of their cluster",
            "higher",
            needs=LABELS,
            no_interval=CHOSEN,
        ),
        "homogeneity": Metric(
            "1: each cluster has images of one class; low beside completeness: clusters join classes",
            "higher",
            needs=LABELS,
            no_interval=CHOSEN,
        ),
        "completeness": Metric(
            "1: each class is in one cluster; low beside homogeneity: clusters split classes",
            "higher",
            needs=LABELS,
            no_interval=CHOSEN,
        ),
        "homogeneity_half": Metric(
            "homogeneity with half as many clusters as classes",
            "higher",
            no_goal="see homogeneity",
            needs=LABELS,
            no_interval=CHOSEN,
        ),
        "completeness_half": Metric(
            "completeness with half as many clusters as classes",
            "higher",
            no_goal="see completeness",
            needs=LABELS,
            no_interval=CHOSEN,
        ),
        "homogeneity_twice": Metric(
            "homogeneity with twice as many clusters as classes",
            "higher",
            no_goal="see homogeneity",
            needs=LABELS,
            no_interval=CHOSEN,
        ),
        "completeness_twice": Metric(
            "completeness with twice as many clusters as classes",
            "higher",
            no_goal="see completeness",
            needs=LABELS,
            no_interval=CHOSEN,
        ),
    }

    def __call__(self, encodings: Encodings) -> Found:
        features = encodings.evaluated
        chosen = features.at(evenly(torch.arange(len(features), device=features.features.device), self.config.images))
        numbers = clusters(chosen, encodings.seed)
        return Found(numbers, images=len(chosen), words=[said(numbers, _counts(chosen))] if numbers else [])


def clusters(features: Features, seed: int = 0) -> dict[str, float]:
    """Compare k-means clusters of features with their labels.

    With as many clusters as there are classes, with half as many (at least two) and with twice as many, at most one for
    each image. Where there are too many clusters, completeness falls; where too few, homogeneity.

    Args:
        features: with labels.
        seed: of k-means, which is started four times.

    Returns:
        All metrics of `Clusters`; nothing if all images are of one class.

    Raises:
        ConfigError: no labels or no images.

    Source: Rosenberg, Hirschberg 2007, V-Measure (homogeneity, completeness); Hubert, Arabie 1985 (ARI); Strehl, Ghosh
    2002 (NMI; here with the arithmetic mean of the entropies).
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, homogeneity_completeness_v_measure
    from sklearn.metrics.cluster import contingency_matrix

    truth, x = features.targets().cpu().numpy(), features.features.cpu().numpy()
    metrics: dict[str, float] = {}
    for end, count in _counts(features).items():
        found = KMeans(count, n_init=4, random_state=seed).fit_predict(x)  # pyright: ignore[reportArgumentType]
        homogeneity, completeness, nmi = homogeneity_completeness_v_measure(truth, found)  # their harmonic mean is NMI
        if not end:
            table = contingency_matrix(truth, found)  # classes x clusters
            metrics |= {"nmi": float(nmi), "ari": float(adjusted_rand_score(truth, found))}
            metrics["purity"] = float(table.max(0).sum() / len(x))
        metrics |= {f"homogeneity{end}": float(homogeneity), f"completeness{end}": float(completeness)}
    return metrics


def said(metrics: Mapping[str, float], counts: Mapping[str, int]) -> str:
    """Say what homogeneity and completeness tell of each number of clusters.

    Args:
        metrics: as `clusters` returns them.
        counts: clusters by the end of a metric's name.
    """
    parts = [
        f"{count} clusters {_split_or_joined(metrics[f'homogeneity{end}'], metrics[f'completeness{end}'])}"
        for end, count in sorted(counts.items(), key=lambda each: each[1])
    ]
    return f"k-means beside {counts['']} classes: {'; '.join(dict.fromkeys(parts))}"


def _split_or_joined(homogeneity: float, completeness: float) -> str:
    numbers = f"(homogeneity {homogeneity:.2f}, completeness {completeness:.2f})"
    if abs(homogeneity - completeness) <= EQUAL:
        return f"split and join classes alike {numbers}"
    if homogeneity < completeness:
        return f"join classes: under-clustering {numbers}"
    return f"split classes: over-clustering {numbers}"


def _counts(features: Features) -> dict[str, int]:
    """Return the numbers of clusters by the end of a metric's name; none if all images are of one class."""
    classes = len(features.targets().unique())
    ends = TIMES.items() if classes > 1 else ()
    return {end: min(len(features), max(2, round(times * classes))) for end, times in ends}
