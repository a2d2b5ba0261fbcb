"""Run directory → report.html and a page for each two models: self-contained, without a script.

Everything a model, a document or a file of the run says is untrusted: Jinja escapes all of it, what
would reorder or hide text is made visible, lengths are bounded and say so, and the pages' own policy
forbids scripts and loads of any kind.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from lr_ray import config
from lr_ray.report import agreed, charts, compared, evaluated, labels, plots, sides, synthesized, tried, words
from lr_ray.report.facts import Gathered, gather
from lr_ray.report.forest import gaps
from lr_ray.store import Store


def write(store: Store) -> None:
    """Write report.html and report/ from what the run directory holds; sections without data are left out.

    Raises:
        ValueError: a file of the run is not what it should be; names the file.
    """
    found = gather(store)
    pages = {}
    for pair in sides.pairs(store, found.compared.against if found.compared else ""):
        shown, cases = sides.gather(pair), tried.gather(pair)
        if shown.rows or cases:
            store.write(beside(found.name, pair, shown, cases).encode(), sides.FOLDER, pair.file)
            pages[pair.key] = f"{sides.FOLDER}/{pair.file}"
    labelled = labels.gather(store) if found.agreement else labels.Labelled()
    if labelled.rows:
        page = _page("labels.html.jinja", name=found.name, labelled=labelled)
        store.write(page.encode(), sides.FOLDER, f"{labels.KEY}.html")
        pages[labels.KEY] = f"{sides.FOLDER}/{labels.KEY}.html"
    store.write(render(found, pages, labelled.apart).encode(), "report.html")


def render(found: Gathered, pages: Mapping[str, str] | None = None, apart: Sequence[int] = ()) -> str:
    """The page; `pages` are the links to side-by-side answers by what is compared, `apart` is as in
    `agreed.section`."""
    links = dict(pages or {})
    return _page(
        "page.html.jinja",
        found=found,
        pages={"before-after": None, **links},
        verdict=words.verdict(found, _sentences(found)),
        tiles=words.tiles(found),
        comparison=evaluated.comparison(found.evaluation or {}),
        benchmarks=evaluated.benchmarks(found.evaluation or {}),
        compared=compared.section(found.compared, links) if found.compared else None,
        agreed=agreed.section(found.agreement, apart, links.get(labels.KEY)) if found.agreement else None,
        synthesized=synthesized.section(found.synthesis) if found.synthesis else None,
        distributions=charts.distributions(found),
        preferred=charts.preferred(found),
        curves=charts.curves(found),
        dropped=charts.dropped(found),
        effort=words.effort(found),
        times=charts.times(found),
    )


def _sentences(found: Gathered) -> list[str]:
    said = []
    if found.compared:
        said.append(compared.sentence(found.compared))
    if found.agreement:
        said.append(agreed.sentence(found.agreement))
    if found.synthesis:
        said.append(synthesized.sentence(found.synthesis))
    return said


def beside(name: str, pair: sides.Pair, shown: sides.Sides, cases: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page of two models' answers to the same prompts and benchmark cases; `name` is the run's."""
    names = dict(zip(sides.BEFORE_AFTER, pair.names, strict=True))
    plot = gaps(
        shown.counts,
        "Prompts by how far the mean reward moved",
        "difference in points, of 10",
        ("worse", "better"),
    )
    about = {"name": name, "title": pair.title, "names": names}
    return _page("sides.html.jinja", **about, sides=shown, cases=cases, plot=plot)


def _page(template: str, **values: Any) -> str:
    pages, style = _templates()
    # The style sheet is ours and static; its hash in the page's policy keeps every other one out.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return pages.get_template(template).render(
        style=Markup(style),  # noqa: S704 - ours, not data
        digest=digest,
        meter=plots.meter,
        verdicts=words.VERDICTS,
        dimensions=config.DIMENSIONS,
        **values,
    )


@cache
def _templates() -> tuple[Any, str]:
    """Jinja's environment, which compiles a template once, and the style sheet."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    folder = files("lr_ray.report")
    named = (file for file in folder.iterdir() if file.name.endswith(".jinja"))
    pages = Environment(
        loader=DictLoader({file.name: file.read_text(encoding="utf-8") for file in named}),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=words.finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(
        clip=words.clip, number=words.number, whole=words.whole, signed=words.signed, percent=words.percent
    )
    return pages, (folder / "style.css").read_text(encoding="utf-8")
