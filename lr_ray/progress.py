"""One display of a run: a steady block in a terminal, plain lines in a job log.

Actors add to a `Tally`, wrapped as an actor by the driver. The driver's `Display` asks it for a snapshot
once a second and shows what `lr_ray.meter` makes of it.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, TextIO

from lr_ray import meter, metrics

if TYPE_CHECKING:
    from rich.console import RenderableType

LOG_EVERY = 10.0  # seconds between the lines of a job log


Name = str | metrics.Key


class Tally:
    """Named counters, one of `meter.COUNTERS` each: the one place all actors of a run count in.

    It also exports them, and what is given under a `metrics.Key`, as the metrics of `run` (none: of nobody);
    `prices` tell what tokens cost.
    """

    def __init__(self, run: str = "", prices: meter.Prices | None = None) -> None:
        self._counts: dict[str, float] = {}
        self._prices = prices
        self._exporter = metrics.Exporter(run) if run else None

    def add(self, counts: Mapping[Name, float]) -> None:
        """Add each count to the counter of its name.

        Raises:
            ValueError: a name that is no counter; then nothing is added.
        """
        plain, keyed = _known(counts, "counter")
        for name, count in plain.items():
            self._counts[name] = self._counts.get(name, 0) + count
        if self._exporter:
            self._exporter.add({**keyed, **metrics.bought(plain, self._prices), **_renamed(plain, "counter")})
            self._exporter.put(_renamed({name: self._counts[name] for name in plain}, "gauge"))

    def put(self, counts: Mapping[Name, float]) -> None:
        """Set counters, as a training that starts again from a checkpoint sets its steps.

        Raises:
            ValueError: a name that is no counter; then nothing is set.
        """
        plain, keyed = _known(counts, "gauge")
        self._counts.update(plain)
        if self._exporter:
            self._exporter.put({**keyed, **_renamed(plain, "gauge")})

    def snapshot(self) -> dict[str, float]:
        """All counters; the display asks each second, and that keeps the gauges alive."""
        if self._exporter:
            self._exporter.refresh()
        return dict(self._counts)


def _known(counts: Mapping[Name, float], kind: str) -> tuple[dict[str, float], dict[metrics.Key, float]]:
    """The counts by plain names, and those by keys of metrics of this kind."""
    plain = {name: count for name, count in counts.items() if isinstance(name, str)}
    unknown = plain.keys() - set(meter.COUNTERS)
    if unknown:
        raise ValueError(f"no such counter: {', '.join(sorted(unknown))}")
    keyed = {name: count for name, count in counts.items() if not isinstance(name, str)}
    for key in keyed:
        metrics.check(key, kind)
    return plain, keyed


def _renamed(counts: Mapping[str, float], kind: str) -> dict[metrics.Key, float]:
    """The counts that are metrics of this kind under another name."""
    named = {
        metrics.OF_COUNTERS[name]: count for name, count in counts.items() if name in metrics.OF_COUNTERS
    }
    return {key: count for key, count in named.items() if metrics.METRICS[key[0]].kind == kind}


def say(text: str) -> None:
    """One plain line for the user, beside the display."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


class Display:
    """Shows a run on `stream` (none: stderr); use it as a context manager around all stages.

    In a terminal one block is redrawn in place: the finished stages, the running one, a note. Anywhere
    else plain lines are written, at stage changes and at most every 10 seconds between. With `poll` (as
    ``lambda: ray.get(tally.snapshot.remote())``) the display asks by itself each second, in a thread;
    without it, call `update`. `total_rows` is the default total of a stage. `now` is a steady clock.
    """

    def __init__(
        self,
        total_rows: float | None,
        prices: meter.Prices,
        stream: TextIO | None = None,
        poll: Callable[[], Mapping[str, float]] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._prices, self._poll, self._now = total_rows, prices, poll, now
        self._stream = stream or sys.stderr
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._finished: list[str] = []
        self._meter: meter.Meter | None = None
        self._view: meter.View | None = None
        self._counts: dict[str, float] = {}
        self._note = ""
        self._said = -math.inf
        terminal = self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._block = _Block(self._stream) if terminal else None

    def __enter__(self) -> Self:
        if self._block:
            self._block.start()
        if self._poll:
            self._thread = threading.Thread(target=self._keep_polling, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join(timeout=5)
        if self._block:
            self._block.stop()

    def _keep_polling(self) -> None:
        while not self._ended.wait(1.0):
            self.update(self._latest())

    def _latest(self) -> Mapping[str, float]:
        if self._poll is None:
            return self._counts
        try:
            return self._poll()
        except Exception as error:  # a display that lost its counters must not end the run it shows
            self.note(f"counters not available: {type(error).__name__}")
            return self._counts

    @contextmanager
    def stage(
        self, name: str, total: float | None = None, counted: Sequence[str] = meter.ROWS
    ) -> Iterator[None]:
        """Show the stage `name`, done when the `counted` counters have grown by `total`.

        With `meter.STEPS` the total is the counter `train_total`.
        """
        counts = self._latest()
        with self._lock:
            total = self._total if total is None else total
            self._meter = meter.Meter(name, total, counted, self._prices, counts, self._now())
            self._note = ""
            self._say(f"{name}: started")
            self.update(counts)
        outcome = "stopped"
        try:
            yield
            outcome = "done"
            self.update(self._latest())
        finally:
            with self._lock:
                self._end(name, outcome)

    def _end(self, name: str, outcome: str) -> None:
        self._meter, self._note = None, ""
        assert self._view is not None
        took = f"{meter.head(self._view)} in {meter.clock(self._view.elapsed)}"
        self._finished.append(meter.plain(f"{'✓' if outcome == 'done' else '✗'} {name}: {took}"))
        self._say(f"{name}: {outcome}, {took}")
        self._draw()

    def note(self, text: str) -> None:
        """Show what is going on that no counter shows, as "starting vLLM"; empty: nothing."""
        with self._lock:
            if text and text != self._note:
                self._say(text)
            self._note = text
            self._draw()

    def update(self, counts: Mapping[str, float]) -> None:
        """Show a tally's snapshot."""
        with self._lock:
            self._counts = dict(counts)
            if self._meter:
                self._view = self._meter.observe(self._counts, self._now())
                if self._now() - self._said >= LOG_EVERY:
                    self._say(meter.line(self._view))
            self._draw()

    def _say(self, text: str) -> None:
        if self._block is None:
            self._said = self._now()
            # A log's encoding may know no '·' or '…'; that must not end the run.
            encoding = self._stream.encoding or "utf-8"
            said = meter.plain(text).encode(encoding, "replace").decode(encoding)
            self._stream.write(said + "\n")
            self._stream.flush()

    def _draw(self) -> None:
        if self._block:
            self._block.draw(self._finished, self._view if self._meter else None, self._note)


class _Block:
    """The block in a terminal, drawn by rich; only when asked, so that it neither flickers nor scrolls."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(file=stream, force_terminal=True), auto_refresh=False)

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def draw(self, finished: Sequence[str], view: meter.View | None, note: str) -> None:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [Text(done, style="green", no_wrap=True) for done in finished]
        parts += _running(view) if view else []
        if note:
            parts.append(Text(f"  {meter.plain(note)} …", style="yellow", no_wrap=True, overflow="ellipsis"))
        self._live.update(Group(*parts), refresh=True)


def _running(view: meter.View) -> "list[RenderableType]":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    times = f"{meter.clock(view.elapsed)} so far · {meter.clock(view.left)} left"
    bar = ProgressBar(total=view.total or 1, completed=view.done if view.total else 0, width=24)
    top = Table.grid(padding=(0, 2))
    top.add_row(Text(meter.plain(view.stage), style="bold"), bar, meter.head(view), Text(times, style="dim"))
    rest = Table.grid(padding=(0, 2))
    for name, text in meter.facts(view):
        style = "red" if name == "failures" else ""
        rest.add_row(Text(f"  {name}", style=style or "dim"), Text(text, style=style))
    return [top, rest] if rest.rows else [top]
