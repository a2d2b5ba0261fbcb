"""What all processes together do at one replica, added up from their reports."""

import math
from dataclasses import dataclass

from lr_ray.llm.lease import Seen

SMOOTH = 0.4  # seconds over which use is averaged


@dataclass(slots=True)
class Process:
    """Use by one process: smoothed rates a second, and what it did in the present epoch."""

    requests: float = 0.0
    tokens: float = 0.0
    in_flight: int = 0
    hungry: float = 0.0
    elapsed: float = 0.0
    granted: int = 0
    granted_tokens: float = 0.0
    refused: int = 0
    refused_tokens: float = 0.0

    def take(self, seen: Seen, epoch: int) -> None:
        """Add a report."""
        self.in_flight = seen.in_flight
        if seen.elapsed <= 0:
            return
        weight = 1 - math.exp(-seen.elapsed / SMOOTH)
        self.requests += weight * (seen.granted / seen.elapsed - self.requests)
        self.tokens += weight * (seen.tokens / seen.elapsed - self.tokens)
        self.hungry += weight * (min(1.0, seen.hungry / seen.elapsed) - self.hungry)
        if seen.epoch == epoch:
            self.elapsed += seen.elapsed
            self.granted += seen.granted
            self.granted_tokens += seen.tokens
            self.refused += seen.refused
            self.refused_tokens += seen.refused_tokens

    def begin(self) -> None:
        """An epoch begins."""
        self.elapsed = self.granted_tokens = self.refused_tokens = 0.0
        self.granted = self.refused = 0


class Usage:
    """Sums over processes; an epoch is the time since the limits were cut last."""

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}

    def take(self, name: str, seen: Seen, epoch: int) -> None:
        """Add the report of a process."""
        self.processes.setdefault(name, Process()).take(seen, epoch)

    def of(self, name: str) -> Process:
        """The use by one process."""
        return self.processes.get(name) or Process()

    def begin(self) -> None:
        """An epoch begins."""
        for process in self.processes.values():
            process.begin()

    @property
    def requests(self) -> float:
        """Requests a second, lately."""
        return sum(process.requests for process in self.processes.values())

    @property
    def tokens(self) -> float:
        """Tokens a second, lately."""
        return sum(process.tokens for process in self.processes.values())

    @property
    def in_flight(self) -> int:
        """Calls in flight."""
        return sum(process.in_flight for process in self.processes.values())

    @property
    def hungry(self) -> float:
        """The share of the time in which calls of some process waited for leave."""
        return max((process.hungry for process in self.processes.values()), default=0.0)

    @property
    def age(self) -> float:
        """Seconds of the epoch."""
        return max((process.elapsed for process in self.processes.values()), default=0.0)

    @property
    def all_heard(self) -> bool:
        """Whether every process has reported in this epoch."""
        return all(process.elapsed for process in self.processes.values())

    @property
    def granted(self) -> int:
        """Tries begun in this epoch."""
        return sum(process.granted for process in self.processes.values())

    @property
    def refused(self) -> int:
        """Of these, those refused."""
        return sum(process.refused for process in self.processes.values())

    def admitted(self) -> tuple[float, float]:
        """Requests and tokens a second that were not refused, on average over the epoch."""
        heard = [process for process in self.processes.values() if process.elapsed]
        requests = sum((process.granted - process.refused) / process.elapsed for process in heard)
        tokens = sum((process.granted_tokens - process.refused_tokens) / process.elapsed for process in heard)
        return requests, tokens
