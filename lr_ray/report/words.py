"""The report in words: verdict, headline figures, and how a value becomes text on the page."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from lr_ray import config, meter
from lr_ray.report.facts import Gathered
from lr_ray.report.visible import visible

VERDICTS = {
    "full": ("✓", "supported"),
    "partial": ("◐", "partly"),
    "none": ("✕", "no support"),
    None: ("?", "unscored"),
}


def finalize(value: Any) -> Any:
    """What Jinja prints for a value: None and NaN as a dash, odd characters visible; escaping comes after."""
    if isinstance(value, Markup):
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return visible(value) if isinstance(value, str) else value


def clip(text: str, head: int, tail: int = 0) -> Markup:
    """The first `head` and last `tail` characters of `text`, escaped; what is left out is counted."""
    text = text.strip("\n")
    hidden = len(text) - head - tail
    if hidden <= 0:
        return Markup("{}").format(visible(text))
    gap = Markup('<span class="cut">… {:,} characters not shown …</span>').format(hidden)
    end = text[len(text) - tail :] if tail else ""
    return Markup("{}{}{}").format(visible(text[:head]), gap, visible(end))


def number(value: float | None, digits: int = 2) -> str:
    """A figure with `digits` decimals; a dash for one that is missing."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}".replace("-", "−")


def whole(value: float | None) -> str:
    """A count, in full."""
    return number(value, 0)


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign, with a real minus."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+,.{digits}f}".replace("-", "−")


def ends(low: float | None, high: float | None, digits: int, *, sign: bool = True) -> str:
    """An interval of differences, or of values without a sign; nothing where there is none."""
    if low is None or high is None:
        return ""
    write = signed if sign else number
    return f"{write(low, digits)} … {write(high, digits)}"


def share(value: float | None) -> str:
    """A share from 0 to 1 in percent."""
    return "–" if value is None else f"{100 * value:.1f}%"


def share_ends(low: float | None, high: float | None) -> str:
    """The interval of a share; nothing where there is none."""
    return "" if low is None or high is None else f"{100 * low:.1f} … {100 * high:.1f}%"


def clipped(text: str, most: int = 80) -> str:
    """`text` in at most so many characters, for where what is cut off is not worth counting."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def some(names: Sequence[str], most: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    listed = ", ".join(clipped(name, 64) for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


def percent(part: float, of: float) -> str:
    """A share; a dash of nothing."""
    return f"{100 * part / of:.0f}%" if of else "–"


def verdict(found: Gathered, more: Sequence[str] = ()) -> list[str]:
    """One paragraph, as sentences, that claims no more than the intervals do; `more` of other sections."""
    said = []
    table = (found.evaluation or {}).get("table", [])
    rows = {row["metric"]: row for row in table if "benchmark" not in row}
    entire = (row for row in table if "benchmark" in row and not row.get("group"))
    tested = {row["metric"].replace(": ", " "): row for row in entire}
    if "reward" in rows:
        said.append(_reward(rows.pop("reward")))
        said.append(_movements(rows))
    said.append(_movements(tested, "benchmarks "))
    scored = found.spreads["reward"]["all"]
    if found.prompts:
        answers = (
            f"{meter.number(found.prompts, 'prompt')} with {meter.number(found.candidates, 'answer')} judged"
        )
        mean = f", mean reward {scored.mean:.2f} of 10" if scored.mean is not None else ""
        said.append(f"{answers}{mean}.")
    if found.pairs:
        gap = (found.spreads["reward"]["chosen"].mean or 0) - (found.spreads["reward"]["rejected"].mean or 0)
        said.append(f"{meter.number(found.pairs, 'preference pair')}, {gap:.2f} points apart on average.")
    said.append(_noise(found))
    said += more
    if found.failed.total:
        said.append(f"{meter.number(found.failed.total, 'prompt')} failed for good; the reasons stand below.")
    return [text for text in said if text] or ["This run directory holds no results yet."]


def _noise(found: Gathered) -> str:
    """How far ratings of one answer differ, where they were repeated."""
    again = found.repeated
    if not again.prompts:
        return ""
    missing = f" ({whole(again.missing)} more were unusable)" if again.missing else ""
    of = f"On {meter.number(again.prompts, 'prompt')} best and worst were close"
    text = f"{of}, and {meter.number(again.samples, 'more rating')}{missing} decided"
    spread = ", ".join(
        f"{name} {math.sqrt(total / count):.2f}" for name, (total, count) in again.variances.items()
    )
    return f"{text}; standard deviation of a rating: {spread}." if spread else f"{text}."


def _reward(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return "No held-out prompt has a reward both before and after training."
    sure = _direction(row)
    did = {"up": "rose", "down": "fell", "open": "shows no clear change"}[sure]
    of = f"On {meter.number(row['prompts'], 'held-out prompt')} the mean reward {did}"
    move = f"{row['before']:.2f} before, {row['after']:.2f} after: {signed(row['difference'])}"
    if row["low"] is None or row["high"] is None:
        return f"{of}: {move}, too few prompts for an interval."
    return f"{of}: {move} (95% interval {signed(row['low'])} to {signed(row['high'])})."


def _direction(row: dict[str, Any]) -> str:
    """up or down where the interval excludes zero, else open."""
    if row["low"] is None or row["high"] is None:
        return "open"
    return "up" if row["low"] > 0 else "down" if row["high"] < 0 else "open"


def _movements(rows: dict[str, dict[str, Any]], what: str = "") -> str:
    told = [text for text in (_movement(rows, way) for way in ("up", "down", "open")) if text]
    text = f"{what}{'; '.join(told)}."
    return text[0].upper() + text[1:] if told else ""


def _movement(rows: dict[str, dict[str, Any]], direction: str) -> str:
    names = [name.replace("_", " ") for name, row in rows.items() if _direction(row) == direction]
    label = {"up": "clearly up", "down": "clearly down", "open": "not clearly moved"}[direction]
    return f"{label}: {some(names)}" if names else ""


def tiles(found: Gathered) -> list[dict[str, str]]:
    """The headline figures: label, value, and a line of detail."""
    shown = []
    for row in (found.evaluation or {}).get("table", []):
        if row["metric"] == "reward":
            detail = f"{number(row['before'])} → {number(row['after'])}"
            if row["low"] is not None:
                detail += f", 95% {signed(row['low'])} to {signed(row['high'])}"
            value = signed(row["difference"])
            shown.append(
                {"label": "held-out reward", "value": value, "detail": detail, "mark": _direction(row)}
            )
    if found.prompts:
        detail = f"{whole(found.candidates)} answers"
        shown.append({"label": "prompts judged", "value": whole(found.prompts), "detail": detail, "mark": ""})
    if found.audit or found.pairs:
        prompts = (found.audit or {}).get("prompts", found.prompts)
        detail = f"{percent(found.pairs, prompts)} of the prompts"
        shown.append({"label": "preference pairs", "value": whole(found.pairs), "detail": detail, "mark": ""})
    if found.usage["calls"]:
        detail = f"{meter.short(found.usage['prompt_tokens'] + found.usage['completion_tokens'])} tokens"
        value = meter.short(found.usage["calls"])
        shown.append({"label": "judge calls", "value": value, "detail": detail, "mark": ""})
    if found.timing:
        detail = f"cost {meter.money(_cost(found))}" if _cost(found) is not None else "all stages"
        value = meter.clock(sum(found.timing.values()))
        shown.append({"label": "time", "value": value, "detail": detail, "mark": ""})
    return shown


def _cost(found: Gathered) -> float | None:
    prices = found.settings.judge.prices if found.settings else config.Prices()
    return meter.cost(found.usage, prices)


def effort(found: Gathered) -> list[tuple[str, str, str]]:
    """What judging took: (what, figure, per prompt)."""
    used = found.usage
    if not used["calls"]:
        return []
    cached = f" ({percent(used['cached_tokens'], used['prompt_tokens'])} from the endpoint's cache)"
    lines = [
        ("judge answers used", used["calls"]),
        ("of them from the ledger, not paid again", used["reused"]),
        ("calls repeated after a fault", used["retries"]),
        (f"prompt tokens{cached if used['cached_tokens'] else ''}", used["prompt_tokens"]),
        ("completion tokens", used["completion_tokens"]),
    ]
    table = [
        (what, whole(count), number(count / found.prompts, 0 if count >= 100 * found.prompts else 1))
        for what, count in lines
    ]
    paid = _cost(found)
    if paid is not None:
        table.append(("cost, in the config's currency", meter.money(paid), f"{paid / found.prompts:.4f}"))
    return table
