"""What each verb of the command line takes: one place for `--help`, what a shell completes, and the reference."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

RUN = "a run's directory, such as runs/digits"
RELEASED = "a run's directory, such as runs/digits, or a release/ folder alone"
OVERRIDES = (
    ("+experiment=NAME", "settings for a purpose: digits, mnist, adult, yelp, ..., or one of your own (--config-dir)"),
    ("GROUP=PART", "a part: data, api, embedding, privacy, schedule, metric, runtime; `dpsyn run --help` lists them"),
    ("KEY=VALUE", "one setting, such as privacy.epsilon=1; `dpsyn run --cfg job` with the same arguments shows all"),
)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """A parser for each verb, by its name, in the order in which help lists them."""
    return {parser.prog.split()[1]: parser for parser in _all()}


def flags() -> dict[str, list[str]]:
    """What may follow each verb and begins with a dash; of `completion` the shells."""
    found = {
        verb: [text for action in parser._actions for text in action.option_strings if text != "-h"]
        for verb, parser in parsers().items()
    }
    return {**found, "completion": ["bash", "zsh", "fish", "--help"]}


def _verb(name: str, what: str, *examples: str) -> argparse.ArgumentParser:
    shown = "\n".join(["examples:", *(f"  {line}" for line in examples)])
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"dpsyn {name}", description=what, epilog=shown, formatter_class=form)


def _of_runs(name: str, what: str, *examples: str) -> argparse.ArgumentParser:
    """One that takes Hydra's overrides: they are read by `compose`, and told here."""
    parser = _verb(name, what, *examples)
    for metavar, told in OVERRIDES:
        parser.add_argument("overrides", nargs="*", metavar=metavar, help=told)
    parser.usage = f"dpsyn {name} [+experiment=NAME] [GROUP=PART ...] [KEY=VALUE ...] [flags]"
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of configs of your own, beside those of dpsyn")
    return parser


def _all() -> Iterator[argparse.ArgumentParser]:
    each = _verb(
        "init",
        "Writes a commented yaml for data of your own, and prints the commands to go on with. It looks at names,\n"
        "types and what you say is public, never at a private row.",
        "dpsyn init stays.csv --sample public_sample.csv --records 5000",
        "dpsyn init photos --pool public_photos --records 2000 --epsilon 2",
        "dpsyn init mails.csv --text body --labels topic=delivery,refund --model gpt-4o-mini --records 3000",
        "dpsyn init reviews.csv --sample public.csv --pool public.csv --records 5000    (rows with a text each)",
    )
    each.add_argument("place", type=Path, metavar="FILE|FOLDER", help="the private data: csv, jsonl, parquet, images")
    each.add_argument("--kind", metavar="KIND", help="table, texts or images; else by the names of the files")
    each.add_argument("--name", help="of the experiment; else of the file")
    each.add_argument("--records", type=int, metavar="N", help="how many, about: declared, published, never counted")
    each.add_argument("--epsilon", type=float, default=1.0, metavar="E", help="the promise; 1 unless you say another")
    each.add_argument("--sample", metavar="PUBLIC", help="of a table: a public sample, or a codebook")
    each.add_argument("--pool", metavar="PUBLIC", help="of images, texts, or rows with a text: public ones of the like")
    each.add_argument("--model", metavar="NAME", help="of texts, alone or of rows: a model of a chat endpoint")
    each.add_argument("--local", metavar="NAME", help="of texts, alone or of rows: a language model here")
    each.add_argument("--text", metavar="COLUMN", help="the column of texts")
    each.add_argument("--labels", metavar="COLUMN=A,B", action="append", default=[], help="a column and its values")
    each.add_argument("--description", metavar="SENTENCE", help="of a text, for the model: a review of a restaurant")
    each.add_argument("--encoding", help="of a csv that is not UTF-8, cp1252 say")
    each.add_argument("--to", type=Path, default=Path("mine"), metavar="DIR", help="where your configs lie: mine")
    yield each

    each = _of_runs(
        "run",
        "Makes the synthetic data. The same command goes on with what was interrupted.\n"
        "`dpsyn run` alone draws the digits that ship with it.",
        "dpsyn run +experiment=digits privacy.epsilon=2 run_dir=runs/two",
        "dpsyn run --config-dir mine +experiment=stays",
        "dpsyn run -m +experiment=smoke privacy.epsilon=1,2 privacy.accept_joint_epsilon=10",
    )
    each.add_argument("-m", "--multirun", action="store_true", help="a sweep: KEY=A,B is a run for A and one for B")
    each.add_argument("--cfg", metavar="job", help="shows all settings, and runs nothing")
    yield each

    each = _of_runs(
        "plan",
        "Tells what a run would promise and cost: privacy, calls, tokens, money, disk. Reads no private row, writes\n"
        "nothing. Takes what `dpsyn run` takes.",
        "dpsyn plan +experiment=mnist",
        "dpsyn plan +experiment=digits --epsilon 0.5,1,2,4",
    )
    each.add_argument(
        "-m", "--multirun", action="store_true", help="a sweep: a plan of each run, and their joint epsilon"
    )
    each.add_argument("--epsilon", metavar="A,B,C", help="the noise at each of these, side by side, and what it hides")
    each.add_argument("--json", action="store_true", help="for programs")
    yield each

    yield _of_runs(
        "check",
        "Reads the private rows and tells what a run would make of them. Spends and writes nothing; what it prints is\n"
        "private. Ends with 1 where a run would be refused.",
        "dpsyn check --config-dir mine +experiment=stays",
    )

    each = _verb(
        "expand",
        "Makes more rows from a finished run, at no cost of privacy. The data and private/ may be gone.",
        "dpsyn expand runs/digits --rows 6000",
        "dpsyn expand runs/digits --rows 500 --labels digit=3 --labels digit=7 --shares uniform",
    )
    each.add_argument("run", type=Path, metavar="RUN", help=RUN)
    each.add_argument("--rows", type=int, required=True, metavar="N", help="how many rows synthetic.parquet is to have")
    each.add_argument(
        "--labels", action="append", default=[], metavar="COLUMN=VALUE", help="rows of these labels alone; repeatable"
    )
    each.add_argument(
        "--shares", metavar="SHARES", help="of the labels: uniform, or numbers with commas between; else as learned"
    )
    each.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="expand.degree.size=1, api.fonts=DIR, runtime.batch_size=512"
    )
    yield each

    each = _verb(
        "report",
        "Writes the page of a run again, from release/ alone, and prints its place.",
        "dpsyn report runs/digits",
        "dpsyn report runs/digits --private",
    )
    each.add_argument("run", type=Path, metavar="RUN", help=RUN)
    each.add_argument("--private", action="store_true", help="private/report.html: beside the real data, for you alone")
    yield each

    each = _verb(
        "evaluate",
        "Measures finished runs without running again, and compares them. What it prints is private. Ends with 1\n"
        "where a number is below --fail-under.",
        "dpsyn evaluate runs/votes runs/none metric=light_classifier",
        "dpsyn evaluate runs/votes --fail-under accuracy=0.9",
        "dpsyn evaluate runs/votes --epsilon 1",
    )
    each.add_argument("runs", nargs="+", metavar="RUN or KEY=VALUE", help="runs; metric=NAME chooses metrics")
    each.add_argument("--iteration", type=int, metavar="T", help="the data of that iteration, not the final ones")
    each.add_argument("--public", action="store_true", help="into release/: the real data are declared public")
    each.add_argument("--fail-under", action="append", default=[], metavar="NUMBER=VALUE", help="for CI; repeatable")
    each.add_argument("--json", action="store_true", help="for programs")
    each.add_argument(
        "--epsilon", type=float, metavar="E", help="measured under DP, which spends it; published with the run"
    )
    each.add_argument("--config-dir", metavar="DIR", help="a folder of configs of your own, beside those of dpsyn")
    yield each

    each = _verb(
        "export",
        "Writes a run's synthetic data as files of your own, with their statement and card.",
        "dpsyn export runs/digits --to digits --format imagefolder",
        "dpsyn export runs/stays --to stays --format csv --rows 1000",
    )
    each.add_argument("run", type=Path, metavar="RUN", help=RELEASED)
    each.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder that is made")
    each.add_argument("--format", required=True, metavar="FORMAT", help="csv, jsonl, parquet, imagefolder or npz")
    each.add_argument("--rows", type=int, metavar="N", help="only so many rows, drawn at random; else all")
    each.add_argument("--iteration", type=int, metavar="T", help="what survived that iteration's vote")
    each.add_argument("--all", action="store_true", help="of an iteration the variations without votes too")
    each.add_argument("--not-private", action="store_true", help="also of a run without noise that protects")
    yield each

    each = _verb(
        "push",
        "Sends a release to the Hugging Face hub, as a data set. Refuses a run that is not private, not complete, or\n"
        "not as its statement says. `hf auth login` first.",
        "dpsyn push runs/digits museum/synthetic-digits --private",
    )
    each.add_argument("run", type=Path, metavar="RUN", help=RELEASED)
    each.add_argument("repository", metavar="OWNER/NAME", help="a data set of the hub; made where it is not there")
    each.add_argument("--private", action="store_true", help="where it is made, for its owner alone")
    yield each

    each = _verb(
        "schema",
        "Drafts the schema of a table, on standard output, to be edited by hand. FILE must be public.",
        "dpsyn schema codebook.csv > schema.yaml",
        "dpsyn schema public_sample.csv.gz --delimiter ';' --encoding cp1252 > schema.yaml",
    )
    each.add_argument("file", metavar="FILE", help="a codebook, or a public sample: csv or parquet; also .csv.gz")
    each.add_argument("--delimiter", metavar="SIGN", help="what parts the cells of a csv; else as its first lines look")
    each.add_argument("--encoding", help="of a csv, cp1252 say; else as its first bytes look")
    yield each

    each = _verb(
        "list",
        "Shows runs side by side, from their release/ alone: state, epsilon, rows, public metrics.",
        "dpsyn list",
        "dpsyn list runs/digits elsewhere/runs --json",
    )
    each.add_argument(
        "places", nargs="*", type=Path, default=[Path("runs")], metavar="RUN or FOLDER", help="runs, or folders of runs"
    )
    each.add_argument("--json", action="store_true", help="for programs")
    yield each

    each = _verb(
        "verify",
        "Makes the statement of a run again from its receipts, computes epsilon by exact convolution, and compares\n"
        "the checksum of every file. Ends with 1 where something differs, or where the run is not finished.",
        "dpsyn verify runs/digits",
        "dpsyn verify downloaded_release",
    )
    each.add_argument("run", type=Path, metavar="RUN", help=RELEASED)
    each.add_argument("--json", action="store_true", help="for programs")
    yield each

    each = _verb("budget", "Shows what all your runs spent on each data set, and what that adds up to.", "dpsyn budget")
    each.add_argument("--json", action="store_true", help="for programs")
    yield each

    each = _verb(
        "completion",
        "Prints a script by which a shell completes verbs, groups with their options, and flags.",
        'eval "$(dpsyn completion bash)"',
        "dpsyn completion fish > ~/.config/fish/completions/dpsyn.fish",
    )
    each.add_argument("shell", metavar="SHELL", help="bash, zsh or fish")
    yield each
