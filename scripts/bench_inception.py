#!/usr/bin/env python
"""Inception's images made ready for the network: whole batches against one at a time by Pillow, as clean-fid does it.

    .venv/bin/python scripts/bench_inception.py [--images 256] [--sides 32 64] [--threads 1 2] [--rounds 5] [--network 16]

Both end with float32 [n, 3, 299, 299] that the network takes, equal to 1e-6. Then what the network itself takes, with
random weights: it, and not the resize, is what a CPU is slow at.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dpsyn.embedding.inception import CPU_BATCH, Inception, resized
from dpsyn.networks.runtime import Runtime, exact
from dpsyn.population import Samples

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/embedding"))
from test_inception import random_state


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=CPU_BATCH)
    parser.add_argument("--network", type=int, default=16, help="images for the network; 0: leave it out")
    chosen = parser.parse_args(arguments)

    def by_pillow(images):
        """Ready for the network, one image at a time and one channel at a time."""
        ready = []
        for image in images:
            planes = [Image.fromarray(image[..., k].astype(np.float32)) for k in range(3)]
            planes = [np.asarray(p.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for p in planes]  # type: ignore[misc]
            ready.append(torch.from_numpy(np.stack(planes, 2)).permute(2, 0, 1))
        return (torch.stack(ready) - 128) / 128

    def at_once(images):
        return resized(torch.tensor(images))

    def prepared(work, images):
        """All of them, in the batches that the network gets."""
        for start in range(0, len(images), chosen.batch):
            work(images[start : start + chosen.batch])

    def seconds(work, *arguments):
        start = time.perf_counter()
        work(*arguments)
        return time.perf_counter() - start

    with exact():
        for side in chosen.sides:
            images = np.random.default_rng(0).integers(0, 256, (chosen.images, side, side, 3), np.uint8)
            gap = (at_once(images[:32]) - by_pillow(images[:32])).abs().max().item()
            print(f"{side} x {side} px, largest difference {gap:.1e} of a range of 2")
            ours, theirs = {threads: [] for threads in chosen.threads}, []
            for _ in range(chosen.rounds):  # in turn, so that a busy machine slows both
                torch.set_num_threads(1)
                theirs.append(seconds(prepared, by_pillow, images))
                for threads in chosen.threads:
                    torch.set_num_threads(threads)
                    ours[threads].append(seconds(prepared, at_once, images))
            other = len(images) / min(theirs)
            print(f"  Pillow, 1 thread: {other:,.0f} images/s")
            for threads, times in ours.items():
                speed = len(images) / min(times)
                print(f"  in batches, {threads} thread(s): {speed:,.0f} images/s, ratio {speed / other:.1f}")

    if chosen.network:
        images = Samples(np.random.default_rng(0).integers(0, 256, (chosen.network, 32, 32, 3), np.uint8))
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save(random_state(), file.name)
            part = Inception(file.name, Runtime(device="cpu"))
            part(images)
            for threads in chosen.threads:
                os.environ["OMP_NUM_THREADS"] = str(threads)
                print(
                    f"resize and network, {threads} thread(s): {chosen.network / seconds(part, images):,.1f} images/s"
                )


if __name__ == "__main__":
    main()
