"""Both models' answers to one prompt compared by the judge: the actor."""

from typing import Any, ClassVar

from lr_ray import rows
from lr_ray.benchmarks import wins
from lr_ray.benchmarks.case import Case
from lr_ray.benchmarks.grades import graded
from lr_ray.judge.together import everything
from lr_ray.llm.asker import Asker
from lr_ray.llm.calls import Calls
from lr_ray.llm.messages import language


class Comparer(Asker):
    """Sampled rows of the model after that carry their `case` and the `others` → graded rows.

    `others` are the answers of the model before, by number; `sees` is what the judge is shown.
    """

    takes: ClassVar[rows.Kind] = "sampled"
    makes: ClassVar[rows.Kind] = "graded"
    stage: ClassVar[str] = "compare"

    async def work(self, row: Any, calls: Calls) -> Any:
        """Whether each answer of the model after wins against the one with its number."""
        case = Case(**row["case"])
        others = {one["index"]: one["text"] for one in row["others"]}
        more: dict[str, Any] = {
            "lang": language(row["context"]),
            "context": row["context"] if row["sees"] == "document" else None,
        }
        asked = [
            wins.grades(calls, case.question, one["text"], others[one["index"]], index=one["index"], **more)
            for one in row["candidates"]
            if one["index"] in others
        ]
        grades = [grade for several in await everything(asked) for grade in several]
        missing = sum(grade["value"] is None for grade in grades)
        self.governor.account.row((grades[0]["unscored"] or "") if grades and missing == len(grades) else "")
        self.tally.count("unscored", missing)
        return graded(case, grades, calls.usage)
