"""What a process that makes calls and the keeper of the limits tell each other."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lr_ray.llm.spending import Report as Account

INF = math.inf
LEASE_LASTS = 10.0  # seconds; a process that is cut off must stop paying for what others will do


@dataclass(slots=True)
class Lease:
    """What one process may do at one replica until it hears again; it holds on if it never does.

    `requests` and `tokens` are a second, `window` calls in flight; `pause` is seconds without any new call.
    A later `epoch` means that limits were cut: refusals of calls begun before it say nothing new. While a
    share of the calls is refused whatever is asked (`noisy`), a Retry-After is of the one call alone.
    """

    epoch: int = 0
    requests: float = INF
    tokens: float = INF
    window: int = 1
    pause: float = 0.0
    noisy: bool = False


@dataclass(slots=True)
class Seen:
    """What one process saw of one replica in `elapsed` seconds under one epoch.

    `granted` tries of about `tokens` together began, `refused` (429) of `refused_tokens` came back, added up
    `refused_after` seconds after they began; `in_flight` are those admitted and not yet back; calls had to
    wait for leave in `hungry` of the seconds. `pause` is what is left of the longest Retry-After, `told` the
    headers with which the endpoint speaks of its limits. `lease` is what the process holds.
    """

    epoch: int = 0
    elapsed: float = 0.0
    granted: int = 0
    tokens: float = 0.0
    refused: int = 0
    refused_tokens: float = 0.0
    refused_after: float = 0.0
    in_flight: int = 0
    hungry: float = 0.0
    pause: float = 0.0
    told: Mapping[str, str] | None = None
    lease: Lease = field(default_factory=Lease)


@dataclass(slots=True)
class Report:
    """One process → keeper: what it saw of each replica, and its account.

    `spent` is money, of the process's whole life, and `keeper` who gave the leases it holds (none: nobody
    yet): a keeper that starts anew counts and allows what the one before it did. `allowed` is the `spent` up
    to which that one let it go.
    """

    seen: list[Seen]
    account: Account
    spent: float = 0.0
    keeper: str | None = None
    allowed: float = 0.0


@dataclass(slots=True)
class Reply:
    """Keeper → process: a lease a replica, the reason to stop, and the money until the next report.

    `places` is how many calls the process may have in flight at all replicas together.
    """

    keeper: str
    leases: list[Lease]
    places: float = INF
    stop: str | None = None
    allowance: float | None = None
