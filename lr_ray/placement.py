"""What the cluster can hold: as many actors as asked for, or fewer, or none, said before anything starts.

Ray Data waits for ever, without an error, where actors hold every CPU; so one is asked for beside them.
"""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from lr_ray.config import Training
from lr_ray.progress import say

Resources = dict[str, float]

LOOK_EVERY = 2.0
"""Seconds between looks at a cluster that grows."""


@dataclass(frozen=True)
class Need:
    """`count` actors or workers called `name`, each of `bundles` times `each` resources of one node.

    A stage that is `flexible` works with fewer of them, at least one; another one needs all.
    """

    name: str
    count: int
    each: Resources = field(default_factory=dict)
    bundles: int = 1
    flexible: bool = True


DATA_TASKS = Need("Ray Data's own tasks", 1, {"CPU": 1.0}, flexible=False)
"""What a pipeline of Ray Data needs beside its actors."""


def worker(training: Training) -> Resources:
    """What a training worker takes, and whoever else holds the whole model."""
    gpu = {"GPU": 1.0} if training.use_gpu else {}
    return {"CPU": training.num_cpus, **gpu, **training.resources}


class Groups:
    """Placement groups of actors that start further ones; for a ``with``, after which nothing is reserved.

    Ray keeps what a group reserves until it is removed or the driver ends, however long its actors are gone.
    """

    def __init__(self) -> None:
        self._made: list[Any] = []
        self._lock, self._over = threading.Lock(), False

    def __enter__(self) -> Self:
        return self

    def options(self, need: Need) -> dict[str, Any]:
        """What puts one actor of `need`, and all that it starts, into a group of its bundles.

        There are as many groups as actors, given out in turn: Ray Data also asks for options that it starts
        no actor with, and what a further group reserved would be missing.

        Raises:
            RuntimeError: the block is over.
        """
        import ray.util
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        with self._lock:
            # Ray Data's own thread may want another actor after a first one has ended the block by its error.
            if self._over:
                raise RuntimeError("no actor is started any more")
            if len(self._made) < need.count:
                group = ray.util.placement_group([_wanted(need.each)] * need.bundles, strategy="PACK")
            else:
                group = self._made.pop(0)
            self._made.append(group)
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        return {"scheduling_strategy": strategy, "num_cpus": 0}

    def __exit__(self, *_: object) -> None:
        import ray
        from ray.exceptions import RayError

        with self._lock:
            self._over = True
        while self._made and ray.is_initialized():
            # A Ray that is gone has nothing reserved, and must not hide what ended the block.
            with suppress(RayError):
                ray.util.remove_placement_group(self._made.pop())


def fit(needs: list[Need], nodes: list[Resources]) -> list[int] | None:
    """The largest counts of `needs` that `nodes` hold at once.

    Each starts at its least; then whoever has the smallest part of what it asked for gets one more.

    Returns:
        A count for each need; None: not even the least fits.
    """
    asked = [need.count for need in needs]
    if _holds(needs, asked, nodes):
        return asked
    counts = [min(1, need.count) if need.flexible else need.count for need in needs]
    if not _holds(needs, counts, nodes):
        return None
    growing = {i for i, count in enumerate(counts) if count < asked[i]}
    while growing:
        i = min(growing, key=lambda i: counts[i] / asked[i])
        counts[i] += 1
        if not _holds(needs, counts, nodes):
            counts[i] -= 1
            growing.discard(i)
        elif counts[i] == asked[i]:
            growing.discard(i)
    return counts


def _holds(needs: list[Need], counts: list[int], nodes: list[Resources]) -> bool:
    """Whether first fit, the largest first, places all: good enough for a few kinds of equal pieces."""
    free = [dict(node) for node in nodes]
    pieces = [
        need.each for need, count in zip(needs, counts, strict=True) for _ in range(count * need.bundles)
    ]
    # GPUs and resources of one's own are scarce: what wants them goes first, and shuns no node for it.
    pieces.sort(key=lambda piece: (len(_wanted(piece)), sum(piece.values())), reverse=True)
    return all(_place(piece, free) for piece in pieces)


def _wanted(piece: Resources) -> Resources:
    return {name: amount for name, amount in piece.items() if amount}


def _place(piece: Resources, free: list[Resources]) -> bool:
    wanted = _wanted(piece)
    fitting = [n for n in free if all(n.get(k, 0.0) + 1e-9 >= v for k, v in wanted.items())]
    if not fitting:
        return False
    # The node with the fewest kinds of resources, so that CPU work leaves GPU nodes alone where it can.
    node = min(fitting, key=lambda n: (len(n), n.get("CPU", 0.0)))
    for name, amount in wanted.items():
        node[name] -= amount
    return True


def require(needs: list[Need], wait: float = 0.0) -> list[int]:
    """How many of each of `needs` to start on the cluster as it is, or becomes within `wait` seconds.

    An autoscaler is asked for what is missing. Fewer than asked for is said on stderr.

    Raises:
        ValueError: one sentence with what is asked for and what is there.
    """
    nodes = _nodes()
    counts = fit(needs, nodes)
    if wait and counts != [need.count for need in needs]:
        counts = _grown(needs, wait)
    if counts is None:
        asked = ", ".join(f"{n.name} {n.count} x {_piece(n)}" for n in needs)
        there = _total(_nodes())
        raise ValueError(
            f"too little to run on: {asked} are asked for, "
            f"Ray has {_words(there)} on {len(nodes)} node{'s' * (len(nodes) != 1)}; "
            "lower actors, num_workers or num_cpus, or add nodes"
        )
    for need, count in zip(needs, counts, strict=True):
        if count < need.count:
            say(f"{need.name}: {count} of {need.count} actors, as many as Ray's nodes hold")
    return counts


def _grown(needs: list[Need], wait: float) -> list[int] | None:
    """The counts that fit when all is there, or `wait` seconds are over."""
    from ray.autoscaler.sdk import request_resources

    bundles = [_wanted(need.each) for need in needs for _ in range(need.count * need.bundles)]
    request_resources(bundles=bundles)
    end = time.monotonic() + wait
    try:
        while time.monotonic() < end:
            counts = fit(needs, _nodes())
            if counts == [need.count for need in needs]:
                break
            time.sleep(LOOK_EVERY)
    finally:
        request_resources(bundles=[])  # what runs is reason enough to keep the nodes
    return fit(needs, _nodes())


def _nodes() -> list[Resources]:
    import ray

    # Ray names some resources after nodes and their hardware; nobody asks for those.
    return [
        {name: amount for name, amount in node["Resources"].items() if ":" not in name}
        for node in ray.nodes()
        if node["Alive"]
    ]


def _total(nodes: list[Resources]) -> Resources:
    names = sorted({name for node in nodes for name in node if not name.endswith("memory")})
    return {name: sum(node.get(name, 0.0) for node in nodes) for name in names}


def _piece(need: Need) -> str:
    words = _words(need.each)
    return words if need.bundles == 1 else f"({need.bundles} x {words})"


def _words(resources: Resources) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"
