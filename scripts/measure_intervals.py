"""How often the intervals of an evaluation under DP hold the true number: real runs, the noise drawn again and again.

The data set is run once, with units held out; the exact histograms of the held-out records are then noised as the ledger
noises them, so often, and each interval is held against the exact share.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console

from dpsyn import compose, evaluation
from dpsyn.build import build
from dpsyn.execution import carry_out
from dpsyn.files import cache_folder, sha256
from dpsyn.privacy.budget import is_evaluation
from dpsyn.privacy.electorate import open_electorate
from dpsyn.privacy.mechanism import discrete_gaussian
from dpsyn.privacy.query import Answer
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.storage import from_parquet, label_name
from dpsyn.show import Screen

REPETITIONS = 100
RUNS = {
    "digits": ["data.split=all", "data.records=1797", "data.hold_out=0.4"],
    "adult": ["data.hold_out=0.1"],
    "yelp_pool": ["data.hold_out=0.2"],
}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=RUNS)
    parser.add_argument(
        "overrides", nargs="*", help="data.path=TRAIN.csv, api.path=POOL.parquet, embedding.model=FOLDER"
    )
    chosen = parser.parse_args(given)
    name = chosen.experiment
    overrides = [f"+experiment={name}", *RUNS[name], "metric.parts=null", "evaluate.epsilon=1"]
    overrides += chosen.overrides
    with tempfile.TemporaryDirectory() as folder:
        job = replace(build(compose.settings([*overrides, f"run_dir={folder}/run"])), metrics={})
        carry_out(job, Screen(Console(quiet=True), {}, 0))
        run = RunDirectory(job.root)
        path = run.release / "synthetic.parquet"
        embed = job.embed if job.schedule.uses_api else None
        judge = evaluation.judge(
            from_parquet(path.read_bytes(), path), job.labels, embed, job.facts.schema, sha256(path)
        )
        side = job.side(is_held=True)
        electorate = open_electorate(
            job.data, judge, {"intervals": judge.digest}, "record", cache_folder(), 1, side=side
        )
    by, names = evaluation.asked(judge), [release.name for release in job.evaluation]
    queries = evaluation.queries(by, len(job.labels), names)
    exact = [electorate.tally(query, 0, 1) for query in queries]
    charges = [charge for charge in job.budget().charges if is_evaluation(charge)]
    labels = [label_name(label) for label in job.labels]

    def numbers(answers: list[Answer]) -> dict[str, dict[str, float]]:
        said = evaluation.told(by, labels, dict(zip(names, answers, strict=True)), True, True)
        columns = [{**each, "value": each["total_variation"]} for each in said.get("columns", [])]
        return {each["name"]: each for each in said["numbers"]} | {f"column {c['column']}": c for c in columns}

    without = [Answer(counts.astype(np.float64), 1e-9) for counts in exact]
    true = {key: each["value"] for key, each in numbers(without).items()}
    held, widths = Counter[str](), Counter[str]()
    for _ in range(REPETITIONS):
        answers = [
            Answer(discrete_gaussian(counts, charge.sigma).astype(np.float64), charge.sigma)
            for counts, charge in zip(exact, charges, strict=True)
        ]
        for key, each in numbers(answers).items():
            held[key] += each["noise_low"] - 1e-4 <= true[key] <= each["noise_high"] + 1e-4
            widths[key] += (each["noise_high"] - each["noise_low"]) / 2
    print(f"{name}: {int(exact[0].sum())} held-out records, epsilon 1, {REPETITIONS} repetitions")
    for key, value in true.items():
        print(f"  {key}: {value:.4f}, interval +-{widths[key] / REPETITIONS:.4f}, holds it {held[key]} times")


if __name__ == "__main__":
    main()
