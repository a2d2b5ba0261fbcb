"""What stands between the simulated judge and its answers: rate limits, faults and a prefix cache."""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

SENT_BACK = ("throttled", "error", "unavailable", "timeout", "hangup")  # no answer: nothing is to be paid
SPOILT = ("truncated", "refusal", "content_filter", "invalid", "out_of_range", "empty")  # paid, of no use
FAULTS = (*SENT_BACK, *SPOILT)

Clock = Callable[[], float]


class Schedule:
    """A number that may change in mid-run: "600" or "600@0,300@20", value@seconds since the first request.

    Before the first named second the first value holds.

    Raises:
        ValueError: it is written otherwise.
    """

    def __init__(self, text: float | str, name: str) -> None:
        steps: list[tuple[float, float]] = []
        for part in str(text).split(","):
            value, _, since = part.partition("@")
            try:
                steps.append((float(since or 0), float(value)))
            except ValueError as error:
                raise ValueError(f"{name}: {part!r} is no number and no value@seconds") from error
        if any(value <= 0 or not math.isfinite(value) for _, value in steps) or steps != sorted(steps):
            raise ValueError(f"{name}: {text!r}: values must be above 0, and seconds in rising order")
        self._steps = steps

    def at(self, seconds: float) -> float:
        """The value `seconds` after the first request."""
        return next((value for since, value in reversed(self._steps) if since <= seconds), self._steps[0][1])


class Bucket:
    """A rate limit by a scheduled number a minute, in a bucket of one second's worth (but at least 1)."""

    def __init__(self, a_minute: Schedule, clock: Clock) -> None:
        self._a_minute, self._clock = a_minute, clock
        self._left, self._filled_at = math.inf, 0.0

    def wait(self, amount: float) -> float:
        """Seconds until `amount` (of what is larger than the bucket: a full one) is there; 0 when it is."""
        rate, size = self._fill()
        missing = min(amount, size) - self._left
        return missing / rate if missing > 1e-9 else 0.0

    def charge(self, amount: float) -> None:
        """Take `amount`; it may leave a debt."""
        self._fill()
        self._left -= amount

    def headers(self, what: str) -> dict[str, str]:
        """The limit a minute, what is left, and the time until the bucket is full, as OpenAI names them."""
        rate, size = self._fill()
        return {
            f"x-ratelimit-limit-{what}": str(int(rate * 60)),
            f"x-ratelimit-remaining-{what}": str(max(0, int(self._left))),
            f"x-ratelimit-reset-{what}": f"{math.ceil((size - self._left) / rate * 1000)}ms",
        }

    def _fill(self) -> tuple[float, float]:
        """Rate a second and size of the bucket, after what the time since the last look brought."""
        now = self._clock()
        rate = self._a_minute.at(now) / 60
        size = max(1.0, rate)
        self._left = min(size, self._left + (now - self._filled_at) * rate)
        self._filled_at = now
        return rate, size


class Limits:
    """All limits of a server; a schedule counts from the first request. None: no such limit."""

    def __init__(
        self,
        requests_per_minute: float | str | None,
        tokens_per_minute: float | str | None,
        max_concurrency: float | str | None,
    ) -> None:
        self.began: float | None = None
        made = (("requests", requests_per_minute), ("tokens", tokens_per_minute))
        self._buckets = {
            what: Bucket(Schedule(text, f"{what}_per_minute"), self.seconds)
            for what, text in made
            if text is not None
        }
        self._most = None if max_concurrency is None else Schedule(max_concurrency, "max_concurrency")

    def seconds(self) -> float:
        """Since the first request."""
        now = time.monotonic()
        if self.began is None:
            self.began = now
        return now - self.began

    def refuses(self, tokens: int, in_flight: int) -> tuple[str, float] | None:
        """Which limit refuses a request of about `tokens`, and the seconds to wait (0: not known)."""
        if self._most is not None and in_flight >= self._most.at(self.seconds()):
            return "concurrency", 0.0
        asked = {"requests": 1.0, "tokens": float(tokens)}
        for what, bucket in self._buckets.items():
            wait = bucket.wait(asked[what])
            if wait:
                return what, wait
        for what, bucket in self._buckets.items():
            bucket.charge(asked[what])
        return None

    def used(self, tokens: int) -> None:
        """An answer used `tokens` more than its request was charged for."""
        if "tokens" in self._buckets:
            self._buckets["tokens"].charge(tokens)

    def headers(self) -> dict[str, str]:
        return {k: v for what, bucket in self._buckets.items() for k, v in bucket.headers(what).items()}


class Faults:
    """Which requests fail, and how: the share of each kind, drawn by the request's bytes and how often they
    came. "0.05" is a share of all kinds together, "timeout=0.02,invalid=0.1" names them.

    Raises:
        ValueError: an unknown kind, or shares that are none.
    """

    def __init__(self, text: float | str) -> None:
        self._shares: dict[str, float] = {}
        self._seen: dict[bytes, int] = {}
        for part in str(text).split(","):
            kind, equals, share = part.strip().rpartition("=")
            try:
                value = float(share)
            except ValueError as error:
                raise ValueError(f"faults: {part!r} is no share and no kind=share") from error
            if equals and kind not in FAULTS:
                raise ValueError(f"faults: no kind {kind!r}; there are {', '.join(FAULTS)}")
            self._shares |= {kind: value} if equals else dict.fromkeys(FAULTS, value / len(FAULTS))
        if not all(share >= 0 for share in self._shares.values()) or sum(self._shares.values()) > 1 + 1e-9:
            raise ValueError(f"faults: {text!r}: shares are 0 to 1 and at most 1 together")
        self._none = not any(self._shares.values())

    def draw(self, body: bytes) -> str | None:
        """The fault of this request; None: it is answered."""
        if self._none:
            return None
        digest = hashlib.blake2b(body, digest_size=8).digest()
        count = self._seen[digest] = self._seen.get(digest, 0) + 1
        left = int.from_bytes(hashlib.blake2b(digest + count.to_bytes(4), digest_size=8).digest()) / 2**64
        for kind, share in self._shares.items():
            left -= share
            if left < 0:
                return kind
        return None


@dataclass
class Hit:
    """Characters of a prompt found in the cache, and those an unlimited one would have held."""

    characters: int
    possible: int


class PrefixCache:
    """Blocks of `size` characters, each known by all before it; the `blocks` used last are kept.

    A block counts as held from the moment its request arrives. Of a prompt the last blocks leave first, as in
    vLLM: without what stands before it a block is of no use.
    """

    def __init__(self, blocks: int, size: int) -> None:
        self._blocks, self._size = blocks, size
        self._held: OrderedDict[int, None] = OrderedDict()
        self._ever: set[int] = set()

    def take(self, prompt: str) -> Hit:
        """What of `prompt` is there; from now on all of it is."""
        chain, chains = 0, []
        for end in range(self._size, len(prompt) + 1, self._size):
            chain = hash((chain, prompt[end - self._size : end]))
            chains.append(chain)
        held = next((i for i, one in enumerate(chains) if one not in self._held), len(chains))
        ever = next((i for i, one in enumerate(chains) if one not in self._ever), len(chains))
        self._ever.update(chains[ever:])
        for one in reversed(chains):
            self._held[one] = None
            self._held.move_to_end(one)
        while len(self._held) > self._blocks:
            self._held.popitem(last=False)
        return Hit(held * self._size, ever * self._size)
