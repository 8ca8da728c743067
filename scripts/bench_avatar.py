#!/usr/bin/env python
"""Faces a second and core: dpsyn's `avatar` against plain python_avatars and cairosvg in the same run; then all cores.

    .venv/bin/python scripts/bench_avatar.py [--images 1000] [--rounds 3]

Both draw the same random faces, 32 px, as published. Cold: the first faces of a process, which meet each part anew.
"""

import os
from collections.abc import Sequence

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import io
import statistics
import time

import cairosvg
import numpy as np
import python_avatars
from PIL import Image

from dpsyn.api.avatar import Avatar, random_rows
from dpsyn.api.avatar.faces import PARAMETERS, values
from dpsyn.networks.runtime import Runtime
from dpsyn.threads import processors


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(arguments)

    SIZE, CROP = [32, 32], [40, 40, 224, 224]
    seeds = np.random.SeedSequence(0).generate_state(chosen.images, np.uint64)
    rows = random_rows(seeds, "avatar.fresh")

    def plain(rows):
        images = []
        for row in rows.tolist():
            chosen_values = {name: values(name)[value] for name, value in zip(PARAMETERS, row, strict=True)}
            png = cairosvg.svg2png(bytestring=python_avatars.Avatar(**chosen_values, shirt_text=None).render())
            images.append(np.asarray(Image.open(io.BytesIO(png)).convert("RGB").crop(CROP).resize(SIZE)))
        return np.stack(images)

    def drawn(workers):
        return Avatar(SIZE, CROP, Runtime(workers=workers)).generate([{}] * chosen.images, seeds).content

    def timed(work, *arguments):
        start = time.process_time()
        images = work(*arguments)
        return time.process_time() - start, images

    cold, ours = timed(drawn, 0)
    print(f"cold, this process: {chosen.images / cold:.0f} images/s")
    some = rows[: max(1, chosen.images // 5)]
    one, theirs = [], []
    for _ in range(chosen.rounds):  # in turn, so that a busy machine slows both
        seconds, images = timed(plain, some)
        assert (images == ours[: len(some)]).all(), "the pictures differ"
        theirs.append(seconds / len(some))
        one.append(timed(drawn, 0)[0] / chosen.images)
    ratio = statistics.median(plain / own for own, plain in zip(one, theirs, strict=True))
    print(f"plain, one core:    {1 / statistics.median(theirs):.0f} images a CPU s")
    print(f"dpsyn, one core:    {1 / statistics.median(one):.0f} images a CPU s, {ratio:.1f} times as many")
    walls: dict[int | None, list[float]] = {0: [], None: []}
    drawn(None)
    for _ in range(chosen.rounds):
        for workers, seconds in walls.items():
            start = time.perf_counter()
            drawn(workers)
            seconds.append(time.perf_counter() - start)
    faster = statistics.median(alone / shared for alone, shared in zip(*walls.values(), strict=True))
    print(f"dpsyn, {processors()} workers:   {faster:.2f} times one core")
    print(f"| avatars drawn | python_avatars and cairosvg | {ratio:.1f} times as many |")


if __name__ == "__main__":
    main()
