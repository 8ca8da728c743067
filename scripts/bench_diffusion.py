#!/usr/bin/env python
"""Images/s of the published ImageNet-64 network (270M parameters, random weights) with the published sampler.

    .venv/bin/python scripts/bench_diffusion.py [--rows 256] [--calls 10] [--rounds 3] [--device auto]
        [--uncompiled]

float32, eager and channels first, as the reference runs it, against what dpsyn runs: bfloat16, then compiled too. Timed
over `calls` respaced steps; a sample of the published runs takes 100. On a GPU also the memory of the largest batch
that fits. Without a GPU the network is a small one, and the figures tell nothing of the published one.
"""

import argparse
import dataclasses
import importlib.machinery
import importlib.util
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dpsyn.api.diffusion import Diffusion
from dpsyn.api.diffusion import improved as improved_diffusion
from dpsyn.networks.runtime import Runtime, placed, running, torch_device


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--uncompiled", action="store_true", help="leave out the compiled way, which takes a minute")
    chosen = parser.parse_args(arguments)

    PLAIN = Runtime(device=chosen.device, network_batch_size=chosen.rows, dtype="float32", channels_last=False)
    FASTER = dataclasses.replace(PLAIN, dtype="bfloat16", channels_last=True)
    WAYS = {
        "float32 eager": PLAIN,
        "float32 eager, channels last": dataclasses.replace(PLAIN, channels_last=True),
        "bfloat16": FASTER,
    }
    if not chosen.uncompiled:
        WAYS["bfloat16, compiled"] = dataclasses.replace(FASTER, compile=True)
    on_gpu = torch_device(PLAIN) != "cpu"
    rows, side = (chosen.rows, 64) if on_gpu else (min(chosen.rows, 8), 16)
    layout = dict(channels=192, multipliers=(1, 2, 3, 4), blocks=3) if on_gpu else dict(channels=32, multipliers=(1, 2))
    layout |= dict(attention=(2, 3) if on_gpu else (1,))

    def written(folder):
        loader = importlib.machinery.SourceFileLoader("tiny", str(Path(__file__).with_name("make_tiny_models.py")))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader("tiny", loader))
        loader.exec_module(module)
        state = module.improved_diffusion(**layout)
        torch.save(state, Path(folder) / "network.pt")
        return sum(weight.numel() for weight in state.values())

    def part(path, runtime):
        return Diffusion(
            path,
            image_size=None,
            classes=None,
            resolution=side,
            heads=4,
            diffusion_steps=4000,
            noise_schedule="cosine",
            respacing=chosen.calls,
            ddim=True,
            steps=1,
            runtime=runtime,
        )

    def seconds(api):
        """Of the fastest round; the first one, that loads and compiles, does not count."""
        seeds = np.random.SeedSequence(0).generate_state(rows, np.uint64)
        took = []
        for _ in range(chosen.rounds + 1):
            start = time.perf_counter()
            api.generate([{}] * rows, seeds)
            took.append(time.perf_counter() - start)
        return min(took[1:]), took[0]

    def largest(path, runtime):
        """(rows, bytes) of the largest batch, in powers of 2, that goes through the network."""
        network, found = placed(improved_diffusion.network("api.path", path, 4), runtime), (0, 0)
        device, n = torch_device(runtime), 64
        while True:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                with running(runtime):
                    zeros = torch.zeros(n, dtype=torch.int64, device=device)
                    network(torch.zeros(n, 3, side, side, device=device), zeros, zeros)
            except torch.OutOfMemoryError:
                return found
            found, n = (n, torch.cuda.max_memory_allocated()), 2 * n

    with tempfile.TemporaryDirectory() as folder:
        path, size = str(Path(folder) / "network.pt"), written(folder)
        where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU thread(s): a small network"
        print(f"{where}; {size / 1e6:.1f}M parameters, {side} px, {rows} rows, {chosen.calls} calls")
        plain = None
        for name, runtime in WAYS.items():
            try:
                took, first = seconds(part(path, runtime))
            except RuntimeError as error:  # no compiler, say
                print(f"{name}: not here ({type(error).__name__})")
                continue
            plain = plain or took
            rate = rows * chosen.calls / took / 100
            print(
                f"{name}: {rate:.3g} images/s at 100 calls each, {plain / took:.2f} of float32 eager, first {first:.1f} s"
            )
        if on_gpu:
            n, memory = largest(path, FASTER)
            print(f"bfloat16: the largest batch is {n} rows, {memory / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
