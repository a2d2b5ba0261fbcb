"""A network switch in user space, whose cables can be cut, slow or lossy; the kernel needs no netem for it.

    python -m jobs.hosts.switch NAMESPACE...

Each namespace gets a device eth0 that ends here. Says "ready", then takes one JSON object a line on standard
input, `{"host": NAMESPACE, "up": true, "delay": 0.02, "jitter": 0.01, "loss": 0.1}`: seconds, and the share
of frames that are lost, in each direction. Ends when standard input does.
"""

import ctypes
import fcntl
import heapq
import itertools
import json
import os
import random
import selectors
import struct
import sys
import time
from dataclasses import dataclass

NEWNET = 0x40000000
SET_INTERFACE, TAP, NO_HEADER = 0x400454CA, 0x0002, 0x1000
LARGEST_FRAME = 65536
GROUP = 1  # the bit of an address that is everybody's


@dataclass
class Cable:
    """One host's cable; `tap` is the file descriptor of its device."""

    tap: int
    up: bool = True
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0

    def late(self) -> float | None:
        """Seconds that a frame takes; None: it is lost."""
        if not self.up or (self.loss and random.random() < self.loss):
            return None
        return self.delay + random.uniform(0, self.jitter)


class Switch:
    """Learns who is where; frames leave when they are due."""

    def __init__(self, cables: dict[str, Cable]) -> None:
        self._cables = cables
        self._by_tap = {cable.tap: cable for cable in cables.values()}
        self._ports: dict[bytes, int] = {}
        self._due: list[tuple[float, int, int, bytes]] = []
        self._count = itertools.count()

    def serve(self) -> None:
        """Until standard input ends."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (0, *self._by_tap):
                selector.register(descriptor, selectors.EVENT_READ)
            while True:
                wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
                for key, _ in selector.select(wait):
                    if key.fd != 0:
                        self._take(key.fd)
                    elif not self._order():
                        return
                self._deliver()

    def _order(self) -> bool:
        line = sys.stdin.readline()
        if line:
            order = json.loads(line)
            cable = self._cables[order.pop("host")]
            for name, value in order.items():
                setattr(cable, name, value)
            print("done", flush=True)
        return bool(line)

    def _take(self, tap: int) -> None:
        frame = os.read(tap, LARGEST_FRAME)
        to, source = frame[:6], frame[6:12]
        self._ports[source] = tap
        port = None if to[0] & GROUP else self._ports.get(to)
        if (first := self._by_tap[tap].late()) is None:
            return
        for target in (port,) if port is not None else self._by_tap:
            if target != tap and (second := self._by_tap[target].late()) is not None:
                heapq.heappush(
                    self._due, (time.monotonic() + first + second, next(self._count), target, frame)
                )

    def _deliver(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, tap, frame = heapq.heappop(self._due)
            try:
                os.write(tap, frame)
            except OSError:
                continue  # a host that is off


def enter(namespace: str) -> None:
    """Move this thread into a network namespace.

    Raises:
        OSError: there is none, or it is not allowed.
    """
    with open(f"/run/netns/{namespace}") as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


def plug(namespace: str) -> Cable:
    """A cable to eth0 in `namespace`, which is made here and goes with us."""
    enter(namespace)
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, SET_INTERFACE, struct.pack("16sH", b"eth0", TAP | NO_HEADER))
    return Cable(tap)


if __name__ == "__main__":
    switch = Switch({name: plug(name) for name in sys.argv[1:]})
    print("ready", flush=True)
    switch.serve()
