"""Noise: OpenDP's discrete Gaussian (Canonne, Kamath and Steinke 2020), exact, from the operating system's randomness.

Whole integers in, whole integers out: there are no low-order bits of a float to leak through.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dpsyn.privacy.budget import SMALLEST_SIGMA
from dpsyn.threads import free_threads

PART = 500  # entries that are worth a thread


def discrete_gaussian(counts: np.ndarray, scale: float) -> np.ndarray:
    """The counts with noise that is independent in every entry, int64 [n].

    A draw takes 10 microseconds, so long vectors are shared among threads, each with a mechanism of its own.

    counts: int64 [n], exact.
    scale: standard deviation of the noise, in counts.

    Raises ValueError for a scale that is not finite or is too small: a scale of 0 would return the exact counts.
    """
    if not (math.isfinite(scale) and scale >= SMALLEST_SIGMA):
        raise ValueError(f"scale {scale}: expected finite and at least {SMALLEST_SIGMA}")
    # its parts, as opendp.prelude takes half a second, of which most is scikit-learn's
    from opendp.domains import atom_domain, vector_domain
    from opendp.measurements import make_gaussian
    from opendp.metrics import l2_distance
    from opendp.mod import enable_features

    enable_features("contrib")

    def drawn(part: np.ndarray) -> np.ndarray:
        # 32 bits would saturate: a user's votes are counted in 1/1024
        vector = vector_domain(atom_domain(T="i64"))
        noisy = make_gaussian(vector, l2_distance(T="f64"), scale=float(scale))
        return np.asarray(noisy(part.astype(np.int64).tolist()), dtype=np.int64)

    parts = np.array_split(counts, min(free_threads(), len(counts) // PART + 1))
    with ThreadPoolExecutor(len(parts)) as pool:
        return np.concatenate(list(pool.map(drawn, parts)))


def insecure_seeded(counts: np.ndarray, scale: float, seed: tuple[int, ...]) -> np.ndarray:
    """Rounded Gaussian noise that anyone with the seed can take off: for tests, written to `not_private/` only.

    counts: int64 [n], exact.
    scale: standard deviation of the noise, in counts.
    seed: of this release, of the run's seed and the iteration.
    """
    return counts + np.rint(np.random.default_rng(seed).normal(0.0, scale, len(counts))).astype(np.int64)
