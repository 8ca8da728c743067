#!/usr/bin/env python
"""Aug-PE with a real language model on this machine, several ways, on embedded or local data; numbers are private.

    .venv/bin/python scripts/bench_texts_model.py mails [--size 160] [--epsilon 4] [--seeds 0] [--ways none own sums exact]
    .venv/bin/python scripts/bench_texts_model.py yelp pubmed iclr_reviews --data ../shared/data --epsilon 1 4 --seeds 0 1 2

Ways: `none` asks no private record and makes as many texts as the others ask the model for; `published` ranks by votes, labels
in equal shares; `own` is the experiment; `sums` chooses among fresh texts by noisy sums of embeddings; `exact` is `own`
without noise, where the ceiling is. A text of SmolLM2 takes about half a CPU second, of MiniLM a tenth.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

EXPERIMENTS = {"mails": "mails_smollm", "yelp": "yelp_smollm", "pubmed": "pubmed_smollm", "iclr_reviews": "iclr_smollm"}
SHOWN = ("accuracy_category", "accuracy_stars", "accuracy_topic", "accuracy_mood", "accuracy_recommendation")
SHOWN += ("frechet", "precision", "recall", "lengths_mean", "lengths_mean_real", "distinct_2", "duplicates")
PUBLISHED = ["schedule.variations=[1,0]", "label_shares=uniform"]


def overrides(way, size):
    """Settings of a way. All ask the model for 3 `size` texts: a first population of 2 `size`, and its variations."""
    no_votes = ["schedule=none", "schedule.smooth=1", "schedule.variations=0"]
    return {
        "none": [*no_votes, "schedule.releases=1", f"schedule.size={3 * size}", "label_shares=uniform"],
        "published": ["schedule=top", "schedule.releases=2", f"schedule.size={size}", *PUBLISHED],
        "own": [f"schedule.size={size}"],
        "sums": [*no_votes, "schedule.releases=1", f"schedule.size={size}", f"schedule.candidates={3 * size}"],
        "exact": [f"schedule.size={size}", "privacy=none", "privacy.label_shares_budget=0.02"],
    }[way]


def run(name, way, size, epsilon, seed, data, folder):
    """Carries a run out in a process of its own; its numbers, and what it took."""
    root = Path(folder) / f"{name}-{way}-{epsilon}-{seed}"
    given = [f"+experiment={EXPERIMENTS[name]}", f"run_dir={root}", f"seed={seed}", *overrides(way, size)]
    if way != "exact":
        given.append(f"privacy.epsilon={epsilon}")
    if data is not None and name != "mails":
        given.append(f"data.path={data / name / 'train.parquet'}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = {
        **os.environ,
        "XDG_STATE_HOME": str(Path(folder) / "state"),
    }  # the account of who measures stays as it is
    command = [sys.executable, "-c", "import sys; from dpsyn.cli import main; sys.exit(main(sys.argv[1:]))", "run"]
    subprocess.run([*command, *given], check=True, env=own, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [path.read_text().splitlines() for path in root.glob("*/metrics.jsonl")]
    numbers = {key: value for each in lines for line in each for key, value in json.loads(line).items()}
    released = "release" if (root / "release/synthetic.parquet").exists() else "not_private"
    texts = pq.read_table(root / released / "synthetic.parquet")["text"].to_pylist()
    return numbers, texts, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Aug-PE with SmolLM2 and MiniLM, several ways.")
    parser.add_argument("names", nargs="+", choices=sorted(EXPERIMENTS))
    parser.add_argument("--data", type=Path, help="the folder with yelp/train.parquet and the others")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[4.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", default=["none", "published", "own", "sums", "exact"])
    parser.add_argument("--texts", type=int, default=0, help="texts of each that are printed, to read")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.names:
            for epsilon in chosen.epsilon:
                for way in chosen.ways:
                    for seed in chosen.seeds:
                        numbers, texts, seconds = run(name, way, chosen.size, epsilon, seed, chosen.data, folder)
                        shown = ", ".join(f"{key} {numbers[key]:.3f}" for key in SHOWN if key in numbers)
                        told = f"{name} epsilon {epsilon:g} {way} seed {seed}: {len(texts)} texts"
                        print(f"{told}, {shown}, {seconds:.0f} CPU s", flush=True)
                        for text in texts[:: max(1, len(texts) // max(1, chosen.texts))][: chosen.texts]:
                            print(f"  - {text}")


if __name__ == "__main__":
    main()
