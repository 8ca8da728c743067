"""How a run is doing, told from its noisy votes alone: free of privacy cost, and free to be shown."""

import numpy as np


def vital_signs(votes: np.ndarray, sigma: float, labels: np.ndarray, ancestors: np.ndarray) -> dict[str, float]:
    """Numbers that say how a release went, by name.

    - effective: (sum w)^2 / sum w^2 over the exact counts w, estimated: the noise adds n sigma^2 to the sum of squares.
    - top_tenth: share of the positive noisy mass that the first tenth of the candidates holds.
    - signal_to_noise: standard deviation of the exact counts within a label, estimated, over sigma.
    - ancestors: how many rows of iteration 0 have descendants.
    - labels_without_votes: labels whose noisy counts sum to nothing.

    votes: noisy counts int64 [n] of the candidates.
    sigma: standard deviation of their noise.
    labels: int64 [n].
    ancestors: int64 [m], the row of iteration 0 from which each row of the new population descends.
    """
    n = len(votes)
    counts = votes.astype(np.float64)
    squares = max(float((counts**2).sum()) - n * sigma**2, 1.0)
    ranked = np.sort(np.maximum(counts, 0))[::-1]
    mass = float(ranked.sum())
    inside = counts.copy()
    for label in np.unique(labels):
        inside[labels == label] -= inside[labels == label].mean()
    signal = max(float((inside**2).mean()) - sigma**2, 0.0) if n else 0.0
    return {
        "effective": min(max(counts.sum(), 0.0) ** 2 / squares, float(n)),
        "top_tenth": float(ranked[: max(1, n // 10)].sum()) / mass if mass else 0.0,
        "signal_to_noise": float(np.sqrt(signal) / sigma) if sigma else float("inf" if signal else 0),
        "ancestors": float(len(np.unique(ancestors))),
        "labels_without_votes": float(sum(votes[labels == label].sum() <= 0 for label in np.unique(labels))),
    }
