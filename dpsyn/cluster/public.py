"""The public side on Ray: makers, actors with a copy of the api and the embedding each. None holds a private row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dpsyn.api import Api
from dpsyn.cluster.private import unloadable
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, invalid
from dpsyn.networks.runtime import OnRay
from dpsyn.processes import can_be_sent

TRIES = 3  # of one batch: what ends several makers is the batch
AHEAD = 2  # batches of a maker that are asked or wait for those before them


class Maker:
    """In its own process, which may end at any time."""

    def __init__(self, parts: tuple[Api, Embedding]) -> None:
        api, embed = parts
        self._parts: dict[str, Callable[..., Any]] = {"generate": api.generate, "vary": api.vary, "embed": embed}
        self._checks = (api.check, embed.check)

    def check(self) -> str:
        """What is wrong with the parts where it runs, a package that is missing say; '' for nothing."""
        try:
            for check in self._checks:
                check()
        except UserError as error:
            return str(error)
        return ""

    def ask(self, what: str, arguments: tuple[Any, ...]) -> tuple[Any, str]:
        """The answer, or the text of an error that the user can fix.

        what: "generate", "vary" or "embed".
        arguments: of that method.
        """
        try:
            return self._parts[what](*arguments), ""
        except UserError as error:
            return None, str(error)


Batch = Callable[[], tuple[Any, ...]]


def check_makers(api: Api, embed: Embedding, runtime: OnRay) -> None:
    """Raises UserError where a part cannot be sent, or cannot work on a node where a maker may be.

    api: the maker of candidates.
    embed: the embedding.
    runtime: what each maker has.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not can_be_sent(api, embed):
        raise invalid("runtime", "ray", "parts that can be pickled", "The api or the embedding is not one.")
    has = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    fit = [name for name, of in has if of.get("CPU", 0) >= 1 and of.get("GPU", 0) >= runtime.gpus]
    sent, look = ray.put((api, embed)), ray.remote(num_cpus=0)(_look)
    there = [NodeAffinitySchedulingStrategy(name, soft=True) for name in fit]  # one that ends now is no fault
    _raise_for([look.options(scheduling_strategy=where).remote(sent) for where in there])


def _look(parts: tuple[Api, Embedding]) -> str:
    return Maker(parts).check()


def _raise_for(asked: Sequence[Any]) -> None:
    """Raises UserError for the first answer that says what is wrong."""
    import ray

    try:
        found = ray.get(list(asked))
    except ray.exceptions.RayTaskError as error:
        raise unloadable(error.cause) from None
    except ray.exceptions.RayError as error:
        raise unloadable(error) from None
    for said in found:
        if said:
            raise UserError(f"a maker on Ray: {said}")


@contextmanager
def dispatching(
    api: Api, embed: Embedding, runtime: OnRay
) -> Iterator[Callable[[str, Sequence[Batch]], Iterator[Any]]]:
    """As `dpsyn.workers.dispatching`, by makers on Ray, which start when they are first asked. Raises UserError where a
    part cannot work on a node.

    api: the maker of candidates.
    embed: the embedding.
    runtime: how many makers, and what each has.
    """
    import ray

    actor = ray.remote(num_cpus=1, num_gpus=runtime.gpus, max_restarts=0, scheduling_strategy="SPREAD")(Maker)
    makers: dict[int, Any] = {}
    sent: list[Any] = []

    def begin(number: int) -> None:
        if not sent:
            sent.append(ray.put((api, embed)))
        makers[number] = actor.remote(sent[0])

    def start() -> None:
        if makers:
            return
        for number in range(runtime.makers):
            begin(number)
        _raise_for([maker.check.remote() for maker in makers.values()])

    def dispatch(what: str, batches: Sequence[Batch]) -> Iterator[Any]:
        start()
        free, tries = list(makers), [0] * len(batches)
        again: list[int] = []
        asked: dict[Any, tuple[int, int]] = {}
        found: dict[int, Any] = {}
        following = first = 0
        while first < len(batches):
            while free and (again or following < min(len(batches), first + AHEAD * len(makers))):
                at = again.pop() if again else following
                following += at == following
                maker = free.pop()
                asked[makers[maker].ask.remote(what, batches[at]())] = (at, maker)
            ready, _ = ray.wait(list(asked), num_returns=1)
            at, maker = asked.pop(ready[0])
            free.append(maker)
            try:
                answer, said = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError:  # it is gone, or its node
                tries[at] += 1
                if tries[at] == TRIES:
                    do = "The same command goes on; with fewer runtime.batch_size a batch needs less memory."
                    raise UserError(
                        f"runtime.makers={runtime.makers}: {TRIES} makers ended on one batch (out of memory?). {do}"
                    ) from None
                again.append(at)
                ray.kill(makers[maker])
                begin(maker)
                continue
            if said:
                raise UserError(said)
            found[at] = answer
            while first in found:
                yield found.pop(first)
                first += 1

    try:
        yield dispatch
    finally:
        for maker in makers.values():
            ray.kill(maker)
