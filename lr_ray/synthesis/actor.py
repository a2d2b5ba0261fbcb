"""Synthesis as an actor: contexts in, contexts with their questions out."""

import itertools
from typing import ClassVar

from lr_ray import rows
from lr_ray.llm.asker import Asker
from lr_ray.llm.calls import Calls
from lr_ray.synthesis.questions import synthesize


class Synthesizer(Asker):
    """Composed contexts → synthesized rows."""

    takes: ClassVar[rows.Kind] = "context"
    makes: ClassVar[rows.Kind] = "synthesized"
    stage: ClassVar[str] = "synthesize"

    def start(self) -> None:
        """Rows that began first go first, so that what their calls share is used while it is cached."""
        self._turns = itertools.count()

    async def work(self, row: rows.Composed, calls: Calls) -> rows.Synthesized:
        """The context with its questions; see `questions.synthesize`."""
        made = await synthesize(row, calls, self.config.synthesis, next(self._turns))
        unchecked = [one["reason"] for one in made["questions"] if one["reason"]]
        fruitless = made["unwritten"] if not made["questions"] else None
        if made["questions"] and len(unchecked) == len(made["questions"]):
            fruitless = unchecked[0]
        self.governor.account.row(fruitless or "")
        outcomes = [one["outcome"] for one in made["questions"]]
        self.journal.info("synthesized", prompt_id=row["prompt_id"], outcomes=outcomes, **made["usage"])
        return made
