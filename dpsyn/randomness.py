"""Seeds of rows, and random numbers from one seed a row, for all rows at once."""

import numpy as np

from dpsyn.population import F64, U64

STREAMS = {  # of a row's seed: where the numbers of each use begin. Uses of one part must not overlap
    "avatar.fresh": 0,  # a parameter each, and from 50 on whether it is left out
    "avatar.anew": 100,
    "avatar.coin": 200,
    "draw_text.trait": 0,  # text, font, then a trait each
    "draw_text.shift": 100,
    "draw_text.warp": 200,
    "draw_text.text_coin": 300,
    "draw_text.font_coin": 301,
    "draw_text.warp_amplitude": 400,
    "draw_text.pressure_amplitude": 401,
    "draw_text.flourish_coin": 402,
    "draw_text.pressure": 500,
    "draw_text.flourish": 700,
    "draw_text.pen": 706,
    "pool.item": 0,
    "pool.neighbour": 1,
    "prompts.length": 1,
    "prompts.mask": 2,
    "prompts.list": 0,  # and the crc32 of the list's name
    "local_llm.token": 2**32,  # a token each; those below are the prompts'
    "table.column": 0,  # three a column: its value, whether it goes missing, whether it is drawn anew
    "constraints.coin": 2**20,  # which side of a comparison moves
    "codec.value": 2**21,  # a column each
    "codec.other_value": 2**21 + 2**20,
}
USES = ("generate", "vary", "lookahead", "select", "expand", "cells")


def seed_sequence(seed: int, t: int, use: str, part: int = 0) -> np.random.SeedSequence:
    """Of one use in iteration t of a run with this seed.

    seed: of the run.
    t: iteration, from 0 on.
    use: a name of `USES`.
    part: of the use, a label say.
    """
    return np.random.SeedSequence(seed, spawn_key=(t, USES.index(use), part))


def row_seeds(seed: int, t: int, use: str, n: int) -> U64:
    """One seed a row, uint64 [n]: a longer request starts with the seeds of a shorter one.

    seed: of the run.
    t: iteration, from 0 on.
    use: a name of `USES`.
    n: rows.
    """
    drawn: U64 = seed_sequence(seed, t, use).generate_state(n, np.uint64)  # type: ignore[assignment]
    return drawn


def generator(seed: int, t: int, use: str) -> np.random.Generator:
    return np.random.default_rng(seed_sequence(seed, t, use))


def retry_seeds(seeds: U64, attempt: int) -> U64:
    """uint64 [n]: the seeds themselves, and for each attempt after the first others, row i from seeds[i] alone.

    seeds: uint64 [n].
    attempt: from 0 on.
    """
    if not attempt:
        return seeds
    words = [np.random.SeedSequence([int(seed), attempt]).generate_state(1, np.uint64)[0] for seed in seeds]
    return np.array(words, np.uint64)


def uniform(seeds: U64, stream: str, at: int = 0) -> F64:
    """float64 [n] in [0, 1), multiples of 2^-53: splitmix64 (Steele, Lea and Flood 2014) of seed and stream.

    seeds: uint64 [n].
    stream: a name of `STREAMS`.
    at: how far into it, a column say.
    """
    z = seeds.astype(np.uint64) + np.uint64((STREAMS[stream] + at + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for _ in range(2):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    drawn: F64 = (z >> np.uint64(11)) * 2.0**-53  # type: ignore[assignment]
    return drawn
