#!/usr/bin/env python
"""Rows with a text each: schedule=rows_then_texts beside plain Aug-PE with label shares, at equal epsilon and calls.

    .venv/bin/python scripts/bench_rows_texts.py mails [--epsilon 1 4] [--seeds 0 1 2] [--ways sums votes both labels]
    .venv/bin/python scripts/bench_rows_texts.py yelp iclr_reviews --data ../shared/data --embedding minilm

Ways: `sums`, `votes` and `both` are rows_then_texts with noisy sums, with votes, with one of each; `labels` is texts with
labels (all columns that are categories), their shares from a noisy release, and sums by label where `sums` has them by
column; `labels_votes` the same with votes instead. All ask a public pool for as many texts. Judged on real rows: total
variation of one and of two columns, accuracy of each column guessed from the text (learned on synthetic rows), Frechet
distance of the texts, the share of distinct bigrams. `real` is as many real rows. The numbers are about the private data.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = {
    "mails": ["topic", "mood", "priority"],
    "yelp": ["category", "stars"],
    "iclr_reviews": ["rating", "decision"],
}
SCHEMAS = {"yelp": "yelp_rows", "iclr_reviews": "iclr_rows"}
MAILS = "{_target_: dpsyn.data.mails.MailRows, schema: ${data.schema}, split: test, id: null, records: null}"
RECORDS = {"mails": 1500, "yelp": 5000, "iclr_reviews": 603}
WAYS = ("sums", "votes", "both", "labels", "labels_votes")


def prepared(name: str, data: Path | None, folder: Path) -> tuple[Path, Path, Path]:
    """Files of the private rows, of public texts, and of real rows to judge by."""
    if name == "mails":
        return mails(folder)
    assert data is not None
    train, test = (data / name / f"{split}.parquet" for split in ("train", "test"))
    if name == "yelp":
        return train, test, train
    pool = (
        folder / "pool.parquet"
    )  # reviews of the test part are too few: half of the private ones are the public texts
    rows = pq.read_table(train)
    pq.write_table(rows.slice(0, 603).select(["text"]), pool)
    pq.write_table(rows.slice(603), folder / "private.parquet")
    return folder / "private.parquet", pool, test


def mails(folder: Path) -> tuple[Path, Path, Path]:
    from dpsyn.data.mails import COLUMNS as NAMES
    from dpsyn.data.mails import MailRows, Mails
    from dpsyn.reading.declarations import read_declared
    from dpsyn.tables.schema import Schema

    schema = Schema(read_declared("schema", "schema", str(Path("configs/schemas/mail_rows.yaml"))))
    for split in ("train", "test"):
        found = [records.samples.content for records in MailRows(schema, split, None, None).batches(10_000)]
        content = np.concatenate(found)
        pq.write_table(pa.table({each: content[each].tolist() for each in NAMES}), folder / f"{split}.parquet")
    texts = [text for records in Mails("public", None, None).batches(10_000) for text in records.samples.content]
    pq.write_table(pa.table({"text": texts}), folder / "pool.parquet")
    return folder / "train.parquet", folder / "pool.parquet", folder / "test.parquet"


def overrides(name: str, way: str, private: Path, pool: Path, size: int, candidates: int) -> list[str]:
    """Settings of a way: rows with texts, or texts with labels."""
    given = [f"api.path={pool}", "api.neighbours=20", "metric=none", f"data.records={RECORDS[name]}"]
    if way.startswith("labels"):
        schema = values(name)
        labels = ", ".join(
            f"{column}: [{', '.join(json.dumps(v) for v in schema[column])}]" for column in COLUMNS[name]
        )
        given += ["data=texts", f"++data.labels={{{labels}}}", "api=pool_texts", "label_shares=noisy"]
        if way == "labels":
            given += ["schedule=none", "schedule.releases=1", "schedule.variations=0", f"schedule.size={size}"]
            given += [f"schedule.candidates={candidates}"]
        else:
            given += ["schedule=balanced", "schedule.releases=2", f"schedule.size={size // 2}"]
            given += ["schedule.degree=[20,20]", "schedule.variations=[1,1]"]
    else:
        given += ["data=tables", f"data.schema.file={SCHEMAS.get(name, 'mail_rows')}", "api=pool_texts"]
        given += ["schedule=rows_then_texts", f"schedule.size={size}", "schedule.degree=20"]
        given += {
            "sums": ["schedule.releases=0", f"schedule.candidates={candidates}"],
            "votes": ["schedule.releases=2", "schedule.candidates=null"],
            "both": ["schedule.releases=1", f"schedule.candidates={candidates}"],
        }[way]
    return [*given, f"data.path={private}", "data.id=bench", "privacy.delta=1e-5"]


def values(name: str) -> Mapping[str, Sequence[str]]:
    from dpsyn.reading.declarations import read_declared
    from dpsyn.tables.schema import Schema

    path = Path(__file__).parent.parent / "configs/schemas" / f"{SCHEMAS.get(name, 'mail_rows')}.yaml"
    schema = Schema(read_declared("schema", "schema", str(path)))
    return {column: schema.columns[column].values for column in COLUMNS[name]}


def judged(
    name: str,
    rows: Mapping[str, Sequence[Any]],
    real: Mapping[str, Sequence[Any]],
    embed: Any,
    known: dict[str, Any],
) -> dict[str, float]:
    """Numbers about rows. known: vectors of texts, to which new ones are added."""
    from sklearn.linear_model import LogisticRegression

    from dpsyn.metric.frechet import distance, moments
    from dpsyn.population import of_texts

    sides = (list(rows["text"]), list(real["text"]))
    new = [text for text in dict.fromkeys([*sides[0], *sides[1]]) if text not in known]
    known.update(zip(new, embed(of_texts(new)), strict=True))
    ours, theirs = (np.stack([known[text] for text in texts]) for texts in sides)
    mean = ours.mean(0)
    scale = float(np.sqrt(np.square(ours - mean).sum(1).mean()))
    found: dict[str, float] = {}
    cells = [{column: np.array(list(map(str, side[column]))) for column in COLUMNS[name]} for side in (rows, real)]
    for k in (1, 2):
        gaps = []
        for columns in itertools.combinations(COLUMNS[name], k):
            shares: list[dict[str, float]] = []
            for side in cells:
                keys, counts = np.unique(["|".join(row) for row in zip(*(side[c] for c in columns), strict=True)],
                                         return_counts=True)  # fmt: skip
                shares.append(dict(zip(keys, counts / counts.sum(), strict=True)))
            every = set(shares[0]) | set(shares[1])
            gaps.append(sum(abs(shares[0].get(key, 0) - shares[1].get(key, 0)) for key in every) / 2)
        found[f"tv_{k}"] = float(np.mean(gaps))
    for column in COLUMNS[name]:
        wanted, actual = cells[0][column], cells[1][column]
        model = LogisticRegression(max_iter=1000).fit((ours - mean) / scale, wanted)
        found[column] = float((model.predict((theirs - mean) / scale) == actual).mean())
    found["frechet"] = distance(*(moments([side]) for side in (ours, theirs)))
    bigrams = [pair for text in rows["text"] for pair in itertools.pairwise(text.lower().split())]
    found["distinct_2"] = len(set(bigrams)) / max(1, len(bigrams))
    return found


def run(name: str, given: Sequence[str], root: Path) -> Mapping[str, Sequence[Any]]:
    from dpsyn import cli

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main(["run", *given, f"run_dir={root}"])
    if code:
        raise SystemExit(out.getvalue())
    found = pq.read_table(root / "release/synthetic.parquet").to_pydict()
    if "label" in found:  # of texts: a number among all combinations of the values
        labels = list(itertools.product(*values(name).values()))
        found |= {column: [labels[i][at] for i in found["label"]] for at, column in enumerate(COLUMNS[name])}
    return found


def embedding(name: str) -> Any:
    from dpsyn import build, compose

    plain = compose.settings(["+experiment=text_smoke", f"embedding={name}"])
    return build.build(plain).embed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Rows with a text each, several ways.")
    parser.add_argument("names", nargs="+", choices=sorted(COLUMNS))
    parser.add_argument("--data", type=Path, help="the folder with yelp/train.parquet and the others")
    parser.add_argument("--embedding", default="ngrams")
    parser.add_argument("--size", type=int, default=1500)
    parser.add_argument("--candidates", type=int, default=12000)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=[*WAYS, "real"])
    parser.add_argument("--set", nargs="*", default=[], help="further settings of the runs, KEY=VALUE")
    chosen = parser.parse_args(arguments)
    embed, known = embedding(chosen.embedding), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = f"{folder}/state"  # the account of who measures stays as it is
        for name in chosen.names:
            place = Path(folder) / name
            place.mkdir()
            private, pool, judge = prepared(name, chosen.data, place)
            real = pq.read_table(judge).to_pydict()
            for epsilon, way in itertools.product(chosen.epsilon, chosen.ways):
                numbers, start = [], time.process_time()
                for seed in chosen.seeds:
                    if way == "real":
                        whole = pq.read_table(private)
                        some = np.random.default_rng(seed).permutation(whole.num_rows)[: chosen.size]
                        numbers.append(judged(name, whole.take(some).to_pydict(), real, embed, known))
                        continue
                    given = overrides(name, way, private, pool, chosen.size, chosen.candidates)
                    given += [
                        f"embedding={chosen.embedding}",
                        f"privacy.epsilon={epsilon}",
                        f"seed={seed}",
                        *chosen.set,
                    ]
                    rows = run(name, given, place / f"{way}-{epsilon}-{seed}")
                    numbers.append(judged(name, rows, real, embed, known))
                seconds = (time.process_time() - start) / len(chosen.seeds)
                told = ", ".join(
                    f"{key} {np.mean([each[key] for each in numbers]):.3f}"
                    f"({np.std([each[key] for each in numbers]):.3f})"
                    for key in numbers[0]
                )
                print(f"{name} epsilon {epsilon:g} {way}: {told}, {seconds:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
