"""Samples to look at, by label and iteration: a grid of images, a page of texts."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dpsyn.files import write
from dpsyn.population import Label, Population
from dpsyn.runs.storage import label_name

LABELS, ITERATIONS = 12, 8  # shown at most: evenly spaced, the first and the last among them
WIDE = 1800  # px, the pictures of a row or of a column together
GAP = 12
TEXTS, CHARACTERS = 3, 400  # of a label and iteration, and of each text


def preview(folder: Path, populations: Sequence[Population], labels: Sequence[Label]) -> None:
    """Writes samples.png for images, samples.txt for texts, nothing for tables.

    folder: in which it is written.
    populations: of some iterations, the last one at the end.
    labels: as declared.
    """
    content = populations[0].samples.content
    if content.ndim == 4:
        sink = io.BytesIO()
        sample_grid(populations, labels).save(sink, "PNG")
        write(folder / "samples.png", sink.getvalue())
    elif content.dtype.kind == "O":
        write(folder / "samples.txt", sample_texts(populations, labels).encode())


def sample_grid(populations: Sequence[Population], labels: Sequence[Label], columns: int = 5) -> Image.Image:
    """Rows are labels, blocks of columns iterations; survivors come first. Raises TypeError for other than images.

    populations: of images, one a block.
    labels: as declared.
    columns: images of a block, side by side.
    """
    if populations[0].samples.content.ndim != 4:
        raise TypeError("a grid of samples needs images")
    shown = [populations[i] for i in _spaced(len(populations), ITERATIONS)]
    rows = _spaced(len(labels), LABELS)
    h, w = shown[0].samples.content.shape[1:3]
    room = min(WIDE / (len(shown) * columns * w), WIDE / (max(len(rows), 1) * h))
    scale = min(3, int(room)) if room >= 1 else room
    h, w = max(1, int(h * scale)), max(1, int(w * scale))
    font = ImageFont.load_default(14)
    names = [label_name(labels[i])[:24] for i in rows]
    margin = 16 + max(int(font.getlength(name)) for name in names)
    head = 26
    word = "iteration " if font.getlength(f"iteration {shown[-1].iteration}") <= columns * w else ""
    grid = Image.new("RGB", (margin + len(shown) * (columns * w + GAP), head + len(rows) * h), "white")
    pen = ImageDraw.Draw(grid)
    for block, population in enumerate(shown):
        left = margin + block * (columns * w + GAP)
        pen.text((left, 5), f"{word}{population.iteration}", "black", font)
        for line, label in enumerate(rows):
            mine = _first(population, int(label), columns)
            for column, row in enumerate(mine):
                grid.paste(_picture(population.samples.content[row], (w, h)), (left + column * w, head + line * h))
    for line, name in enumerate(names):
        pen.text((8, head + line * h + h // 2 - 9), name, "black", font)
    return grid


def _first(population: Population, label: int, n: int) -> np.ndarray:
    mine = np.flatnonzero(population.labels == label)
    best = mine[np.argsort(~population.survivors[mine], kind="stable")]
    among = best[: max(n, int(population.survivors[mine].sum()))]
    return among[_spaced(len(among), n)]


def _spaced(n: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)) if n else np.empty(0, int)


def _picture(image: np.ndarray, size: tuple[int, int]) -> Any:
    flat = image[..., 0] if image.shape[-1] == 1 else image
    by = Image.Resampling.NEAREST if size[0] >= image.shape[1] else Image.Resampling.BOX
    return Image.fromarray(flat).convert("RGB").resize(size, by)


def sample_texts(populations: Sequence[Population], labels: Sequence[Label]) -> str:
    """Of every label some texts of the first and of the last population, each cut to a few lines.

    populations: of texts.
    labels: as declared.
    """
    lines: list[str] = []
    for number in _spaced(len(labels), LABELS):
        lines += [f"== {label_name(labels[number])}", ""]
        for population in populations[:: max(1, len(populations) - 1)]:
            texts = population.samples.content[population.labels == number][:TEXTS]
            lines.append(f"   iteration {population.iteration}" + ("" if len(texts) else ": none"))
            for text in texts:
                cut = textwrap.shorten(text, CHARACTERS, placeholder=" ...")
                lines += textwrap.wrap(cut, 116, initial_indent=" * ", subsequent_indent="   ")
            lines.append("")
    return "\n".join(lines)
