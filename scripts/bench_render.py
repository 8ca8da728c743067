#!/usr/bin/env python
"""draw_text on one thread, warm and cold, against a plain Pillow loop with cached fonts in the same run.

    .venv/bin/python scripts/bench_render.py [--images 70000] [--fonts bundled|system|FOLDER] [--rounds 3]

Both draw the published traits alone (text, font, size, stroke, rotation); `full` adds slant, stretch, weight, shift,
warp and pressure. Cold: a new part, that looks for fonts and makes its masters first.
"""

import os
from collections.abc import Sequence

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
if hasattr(os, "sched_setaffinity"):  # the scan for fonts has threads of its own
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import argparse
import statistics
import time
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import findSystemFonts
from PIL import Image, ImageDraw, ImageFont

from dpsyn.api.draw_text import DrawText


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=70_000)
    parser.add_argument("--fonts", default="system", help="system, bundled, or a folder")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(arguments)

    FONTS = None if chosen.fonts == "system" else chosen.fonts
    PUBLISHED = dict(
        texts=["{digit}"],
        fonts=FONTS,
        size=[10, 29],
        stroke=[0, 2],
        rotation=[-30, 30],
        slant=[0, 0],
        stretch=[1, 1],
        weight=[0, 0],
        shift=0,
        warp=0,
        pressure=0,
        flourish=0,
        box=0,
        image_size=[28, 28],
        background=0,
        foreground=255,
    )
    FULL = {**PUBLISHED, "slant": [-0.4, 0.4], "stretch": [0.6, 1.3], "weight": [-0.5, 1.0]}
    FULL |= {"shift": 1.5, "warp": 4, "pressure": 1.5}
    BATCH = 2048  # rows a call, as in a run
    labels = [{"digit": str(i % 10)} for i in range(chosen.images)]
    seeds = np.random.SeedSequence(0).generate_state(chosen.images, np.uint64)

    def drawn(part, n):
        """Seconds for n images, and their traits."""
        start = time.process_time()
        done = [part.generate(labels[k : min(k + BATCH, n)], seeds[k : min(k + BATCH, n)]) for k in range(0, n, BATCH)]
        seconds = time.process_time() - start
        return seconds, {name: np.concatenate([one.traits[name] for one in done]) for name in done[0].traits}

    def shipped():
        return Path(matplotlib.get_data_path()) / "fonts" / "ttf"

    def paths():
        if FONTS is None:
            found = [*map(Path, findSystemFonts()), *shipped().glob("*.ttf")]
        else:
            found = (shipped() if FONTS == "bundled" else Path(FONTS)).rglob("*")
        return {path.name: str(path) for path in found}

    def plain(traits, n):
        """Seconds for n images, each drawn with the same traits by Pillow, in the order of the rows."""
        found = paths()

        @cache
        def font(name, size):
            return ImageFont.truetype(found[name], size)

        rows = list(zip(*(traits[name][:n].tolist() for name in ("font", "size", "stroke", "rotation")), strict=True))
        for name, size, _, _ in rows:
            font(name, size)
        start = time.process_time()
        for (name, size, stroke, rotation), label in zip(rows, labels, strict=False):
            image = Image.new("L", (28, 28))
            face = font(name, size)
            left, top, right, bottom = face.getbbox(label["digit"], stroke_width=stroke)
            place = (14 - (left + right) / 2, 14 - (top + bottom) / 2)
            ImageDraw.Draw(image).text(place, label["digit"], 255, face, stroke_width=stroke)
            np.asarray(image.rotate(rotation, Image.Resampling.BILINEAR))
        return time.process_time() - start

    few = min(chosen.images, 10_000)
    for name, settings in (("published", PUBLISHED), ("full", FULL)):
        part = DrawText(**settings)
        cold, traits = drawn(part, chosen.images)
        warm, loop = [], []
        for _ in range(chosen.rounds):  # in turn, so that a busy machine slows both
            warm.append(drawn(part, few)[0])
            loop.append(plain(traits, few))
        fonts = len(np.unique(traits["font"]))
        ours, theirs = few / statistics.median(warm), few / statistics.median(loop)
        ratio = statistics.median(plain / own for own, plain in zip(warm, loop, strict=True))
        print(f"{name}, {fonts} fonts: cold {chosen.images:,} images in {cold:.1f} CPU s")
        print(f"  warm {ours:,.0f} images a CPU s, Pillow loop {theirs:,.0f}, ratio {ratio:.1f}")
        print(f"| digits drawn, {name} settings | a loop over Pillow | {ratio:.1f} times as many |")


if __name__ == "__main__":
    main()
