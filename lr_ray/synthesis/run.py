"""`lr-ray synthesize`: documents → contexts → questions → prompts, each step resumed where it stopped."""

import functools
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lr_ray.asking import ask_rows
from lr_ray.config import Config
from lr_ray.flow import blocks, flow, saved
from lr_ray.judge.chunks import measure
from lr_ray.llm import client
from lr_ray.placement import DATA_TASKS, Need, require
from lr_ray.rows import Composed, pack
from lr_ray.runtime import Watch
from lr_ray.store import Store
from lr_ray.synthesis import contexts, documents, outputs, settings
from lr_ray.synthesis.actor import Synthesizer
from lr_ray.synthesis.contexts import Known, Plan
from lr_ray.synthesis.documents import File

READ, DOCUMENTS = "documents.json", "document"


def asking(config: Config) -> Config:
    """The config whose judge section says who writes."""
    synthesis = config.synthesis
    given = {"model": synthesis.model, "base_url": synthesis.base_url}
    changes = {name: value for name, value in given.items() if value is not None}
    return config.model_copy(update={"judge": config.judge.model_copy(update=changes)})


def check(config: Config) -> None:
    """Find what would stop synthesis later.

    Raises:
        ValueError: no documents, an endpoint that cannot be used, or a run directory made with other
            settings; in one sentence.
    """
    store = Store(config.run_dir)
    read = store.exists(READ)
    settings.claim(asking(config), store, read=read, write=False)
    if not read:
        documents.files(config.synthesis.documents)
    client.check(asking(config))


def finished(config: Config, store: Store) -> bool:
    """Whether all documents are read and all contexts done, so that there is nothing for Ray to do."""
    if not store.exists(READ):
        return False
    done = {*store.index(Synthesizer.makes), *store.index("failed")}
    return all(plan.prompt_id in done for plan in contexts.plans(known(store)[0], config.synthesis))


def synthesize(config: Config, store: Store, watch: Watch, *, retry: bool = False) -> dict[str, Any]:
    """Read the documents, make the contexts, have questions written and checked, write the prompts.

    Returns:
        The summary, as in `synthesis.json`, with `failed`: contexts that failed for good, and `fresh`:
        whether anything was made now.

    Raises:
        ValueError: no usable document, or a damaged jsonl or parquet file.
        Stopped: the run stopped early; what was paid for is kept.
    """
    settings.claim(asking(config), store, read=store.exists(READ))
    read = _read(config, store, watch)
    usable, places, dropped = known(store)
    if not usable:
        raise ValueError(f"{config.run_dir}: none of the documents can be used: {_said(dropped)}")
    plans = contexts.plans(usable, config.synthesis)
    load = functools.partial(_load, store=store, tokenizer=config.judge.tokenizer)
    items = [(plan.prompt_id, _item(plan, places)) for plan in plans]
    name = "synthesis"
    counts = ask_rows(asking(config), store, items, Synthesizer, watch, load=load, name=name, retry=retry)
    of_documents = {**read, "used": len(usable), "dropped": dict(sorted(dropped.items()))}
    of_contexts = {
        "asked_for": len(plans),
        "failed": counts["failed"],
        "made_of_several_because_no_document_is_long_enough": sum(plan.wished for plan in plans),
    }
    summary, fresh = outputs.write(config, store, of_documents, of_contexts)
    return {**summary, "failed": counts["failed"], "fresh": fresh or bool(counts["synthesized"])}


def _read(config: Config, store: Store, watch: Watch) -> dict[str, int]:
    """Every document's text in `document/`; what was read once is not read again."""
    before = store.read(READ)
    if before is not None:
        return json.loads(before)
    found = documents.files(config.synthesis.documents)
    store.clear(DOCUMENTS)  # of a reading that was broken off
    needs = [Need("reading", 1, {"CPU": 1}, flexible=False), DATA_TASKS]
    require(needs, config.wait_for_nodes)
    work = functools.partial(_open, config=config)
    counts: dict[str, int] = {}
    with watch.display.stage("reading documents"):
        files = blocks([file._asdict() for file in found.found])
        flow(saved(files.flat_map(work, num_cpus=1), store, keep=False), counts, watch, engines=False)
    read = {"files": len(found.found), "other_files": found.others, "documents": counts.get(DOCUMENTS, 0)}
    store.write(json.dumps(read).encode(), READ)
    return read


def _open(file: dict[str, Any], config: Config) -> Any:
    measured = measure(config.judge.tokenizer)
    for row in documents.read(File(**file), config.synthesis, measured):
        yield dict(pack("document", row))


Places = dict[str, tuple[str, int]]


def known(store: Store) -> tuple[list[Known], Places, Counter[str]]:
    """The documents that can be used, where they lie, and the others counted by reason."""
    columns = ["prompt_id", "name", "digest", "language", "tokens", "dropped"]
    places: Places = {}
    found: dict[str, dict[str, Any]] = {}
    for name in store.files(DOCUMENTS):
        for place, row in enumerate(store.table(DOCUMENTS, name, columns).to_pylist()):
            places[row["prompt_id"]], found[row["prompt_id"]] = (name, place), row
    usable: dict[str, Known] = {}
    dropped: Counter[str] = Counter()
    for row in sorted(found.values(), key=lambda one: one["name"]):
        if row["dropped"]:
            dropped[row["dropped"]] += 1
        elif row["digest"] in usable:
            dropped["the same text as another"] += 1
        else:
            usable[row["digest"]] = Known(row["prompt_id"], row["digest"], row["language"], row["tokens"])
    return list(usable.values()), places, dropped


def _item(plan: Plan, places: Places) -> dict[str, Any]:
    """The plan as JSON, with the place of each document in it."""
    return {"plan": plan.item(), "places": {piece.key: places[piece.key] for piece in plan.pieces}}


def _load(item: dict[str, Any], store: Store, tokenizer: str | None) -> Composed:
    plan = Plan.of(item["plan"])

    def text_of(key: str) -> tuple[str, str]:
        name, place = item["places"][key]
        row = store.table(DOCUMENTS, name, ["prompt_id", "name", "text"]).slice(place, 1).to_pylist()[0]
        return row["name"], row["text"]

    return contexts.compose(plan, text_of, measure(tokenizer))


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items())) or "there is none"


def said(summary: dict[str, Any], where: str) -> str:
    """What came out, in one or two lines for the user."""
    questions, documents = summary["questions"], summary["documents"]
    made = "" if summary["fresh"] else " (made already)"
    lines = [
        f"synthesis: {questions['kept']} prompts of {documents['used']} documents in {where}/"
        f"{outputs.PROMPTS}{made}; {questions['written']} questions were written"
    ]
    if summary["failed"]:
        lines[0] += (
            f"; {summary['failed']} contexts failed; failed/ says why, and lr-ray retry-failed takes them up"
        )
    for what, counts in (("documents", documents["dropped"]), ("questions", questions["dropped"])):
        if counts:
            lines.append(f"synthesis: {what} dropped: {_said(counts)}")
    return "\n".join(lines)


def lost(store: Store) -> bool:
    """Whether there are contexts that failed for good."""
    failed = {row["prompt_id"] for row in store.rows("failed") if row["stage"] == Synthesizer.stage}
    return bool(failed - store.index(Synthesizer.makes).keys())
