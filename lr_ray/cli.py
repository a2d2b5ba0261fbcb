"""The command line: ``lr-ray VERB CONFIG.yaml [section.key=value ...]``.

Exit codes: 0 done; 1 some rows failed for good (they are in `failed/`, with why); 2 bad input or config;
3 the run stopped, on an error or early (budget, error rate); 4 `submit` lost the cluster; 130 interrupted.
Each failure is one sentence; LR_RAY_TRACEBACK=1 shows the stack as well.
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from lr_ray import __version__

BAD_INPUT = 2
STOPPED = 3
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lr-ray")
def cli() -> None:
    """LongReward on Ray: sample, judge, pair, train and evaluate long-context models.

    Every verb resumes: after a crash or Ctrl-C the same command goes on where it stopped, and does and pays
    nothing twice. `lr-ray VERB --help` says what a verb reads and writes.

    \b
    Exit codes:
      0    done
      1    some rows failed for good: failed/ says why, retry-failed takes them up
      2    bad input or config, in one sentence
      3    stopped by an error, or early (budget, error rate)
      4    submit alone: the cluster is out of reach, the job may go on
      130  interrupted
    LR_RAY_TRACEBACK=1 shows the stack of an error.
    """


def _verb(name: str, stages: tuple[str, ...], short: str, text: str) -> None:
    def command(config: str, overrides: tuple[str, ...]) -> int:
        from lr_ray import config as configs
        from lr_ray import pipeline

        return 1 if pipeline.execute(configs.load(config, list(overrides)), stages) else 0

    _with_config(name, short, text)(command)


def _with_config(name: str, short: str, text: str) -> Callable[[Callable[..., int]], Any]:
    """A verb with a config; `short` is its line among the verbs, `text` says what it reads and writes."""

    def decorate(command: Callable[..., int]) -> Any:
        arguments = click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")(command)
        made = click.argument("config", metavar="CONFIG.yaml")(arguments)
        return cli.command(name, help=f"{short}\n\n{text}")(made)

    return decorate


_verb(
    "run",
    ("sample", "judge", "pairs", "train", "evaluate", "report"),
    "The whole loop: sample, judge, pair, train, evaluate.",
    "Reads data.prompts (or data.candidates) and sampling.model; writes what sample, judge, pairs, train, "
    "evaluate and report write, into run_dir.",
)
_verb(
    "sample",
    ("sample",),
    "Candidates for every prompt, through vLLM.",
    "Reads data.prompts and sampling.model; writes sampled/, and failed/ with why.",
)
_verb(
    "judge",
    ("judge",),
    "Scores for candidates, sampled here or elsewhere.",
    "Reads sampled/, or data.candidates with data.prompts; writes judged/, every paid answer into calls/, "
    "and failed/ with why.",
)
_verb(
    "pairs",
    ("pairs",),
    "Best against worst of every judged prompt.",
    "Reads judged/; writes pairs/, in TRL's preference format, and pairs.json, which counts what was "
    "dropped.",
)
_verb(
    "train",
    ("train",),
    "DPO on the pairs, or SFT on training.data.",
    "Reads pairs/ or training.data, and training.model or sampling.model; writes reference/, checkpoints/, "
    "metrics.jsonl and model/, with LoRA adapter/ too.",
)
_verb(
    "evaluate",
    ("evaluate", "report"),
    "The model before and after, on prompts and benchmarks.",
    "Reads evaluation.prompts and evaluation.benchmarks, sampling.model and model/; writes evaluation/, "
    "evaluation.json and report.html.",
)
_verb(
    "synthesize",
    ("synthesize", "report"),
    "Long-context prompts made of documents.",
    "Reads synthesis.documents; writes prompts.jsonl (with synthesis.sft sft.jsonl too), synthesis.json and "
    "report.html.",
)
_verb(
    "agreement",
    ("agreement", "report"),
    "How far the judge agrees with labelled pairs.",
    "Reads agreement.pairs; writes agreement/, agreement.json, report.html and report/agreement.html.",
)


@_with_config(
    "retry-failed",
    "Take up again what is in failed/.",
    "Reads failed/, that of rewards, evaluations and comparisons too; writes what the verb that failed would "
    "have written, and pays only for what calls/ lacks.",
)
def _retry_failed(config: str, overrides: tuple[str, ...]) -> int:
    from lr_ray import compare, pipeline
    from lr_ray import config as configs

    loaded = configs.load(config, list(overrides))
    failed = pipeline.execute(loaded, pipeline.RETRY)
    if loaded.compare.rewards or loaded.compare.runs:
        failed += compare.retry(loaded)
    return 1 if failed else 0


@_with_config(
    "report",
    "A run directory as pages: report.html.",
    "Reads the run directory of CONFIG.yaml, which may be named in its place, with the config.yaml in it; "
    "writes report.html and report/ there, nothing else.",
)
def _report(config: str, overrides: tuple[str, ...]) -> int:
    from lr_ray import pipeline

    pipeline.report_of(config, overrides)
    return 0


@_with_config(
    "plan",
    "What a run would take: calls, money, memory, hours.",
    "Reads data and models as far as they are there (suppose.* says what to expect of the rest), and what "
    "run_dir has; writes and spends nothing.",
)
def _plan(config: str, overrides: tuple[str, ...]) -> int:
    from lr_ray import config as configs
    from lr_ray import dry_run

    click.echo(dry_run.text(configs.load(config, list(overrides))))
    return 0


@_with_config(
    "compare",
    "Several rewards or trainings on the same candidates.",
    "Reads what run reads, and compare.*; writes a run directory each into compare/, compare.json and "
    "report.html.",
)
def _compare(config: str, overrides: tuple[str, ...]) -> int:
    from lr_ray import compare, pipeline
    from lr_ray import config as configs
    from lr_ray.store import Store

    loaded = configs.load(config, list(overrides))
    failed, result = compare.execute(loaded)
    compare.show(result)
    pipeline.report(Store(loaded.run_dir))
    return 1 if failed else 0


@_with_config(
    "serve-judge",
    "An open-weights judge inside the cluster, until Ctrl-C.",
    "Reads serving.*; prints the address that judge.base_url then is. Writes nothing.",
)
def _serve_judge(config: str, overrides: tuple[str, ...]) -> int:
    from lr_ray import config as configs
    from lr_ray import serving

    serving.serve(configs.load(config, list(overrides)))
    return 0


@cli.command("submit")
@click.argument("config", metavar="CONFIG.yaml")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--address", help="The head's dashboard, http://HOST:8265; default: RAY_API_SERVER_ADDRESS.")
@click.option("--verb", default="run", show_default=True, help="What the job does with the config.")
@click.option("--no-wait", is_flag=True, help="Do not follow the job's log.")
def _submit(config: str, overrides: tuple[str, ...], address: str | None, verb: str, no_wait: bool) -> int:
    """A verb as a job on a Ray cluster.

    Sends CONFIG.yaml with its overrides, and this package; follows the job's log and ends with its exit code.
    """
    from lr_ray import config as configs
    from lr_ray import submit

    if verb not in submit.VERBS:
        raise ValueError(f"--verb: {verb!r} is none of {', '.join(submit.VERBS)}")

    def ask(question: str) -> bool:
        return sys.stdin.isatty() and click.confirm(question, default=False, err=True)

    loaded = configs.load(config, list(overrides))
    return submit.submit(loaded, verb, address, follow=not no_wait, ask=ask)


@cli.command("simulate-judge", short_help="A judge of plain rules, to try things without a model.")
@click.option(
    "--port", default=8000, type=click.IntRange(0, 65535), show_default=True, help="0 picks a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback unless you say otherwise.")
@click.option(
    "--latency",
    default=0.0,
    type=click.FloatRange(0, 3600),
    show_default=True,
    help="Seconds added to each answer.",
)
@click.option("--requests-per-minute", help="More get a 429: a number, or 600@0,300@20 (value@seconds).")
@click.option("--tokens-per-minute", help="The same for prompt and completion tokens together.")
@click.option("--max-concurrency", help="The same for requests in flight.")
@click.option("--headers", is_flag=True, help="Send OpenAI's x-ratelimit headers.")
@click.option("--retry-after/--no-retry-after", default=True, show_default=True, help="Say how long to wait.")
@click.option("--faults", default="0", show_default=True, help="Share of requests that fail, or kind=share,…")
@click.option(
    "--cache-blocks",
    default=200_000,
    type=click.IntRange(0),
    show_default=True,
    help="Size of the prefix cache, in blocks.",
)
@click.option(
    "--cache-block",
    default=1024,
    type=click.IntRange(1),
    show_default=True,
    help="Characters of a block.",
)
@click.option("--plain", is_flag=True, help="One fixed answer, for load tests.")
def _simulate_judge(**options: Any) -> int:
    """An OpenAI-compatible judge that answers by plain rules, to try things without a model.

    Reads requests alone and writes nothing; prints its address. GET /v1/stats tells what came.
    """
    from lr_ray import simulated

    simulated.serve(**options)
    return 0


def main() -> None:
    """Entry point of the `lr-ray` command."""
    sys.exit(guarded(lambda: cli.main(standalone_mode=False)))


def guarded(command: Callable[[], Any]) -> int:
    """The exit code of `command`; what it raises is said in one sentence."""
    try:
        code = command()
    except click.ClickException as error:
        return _said(error.format_message(), BAD_INPUT)
    except (KeyboardInterrupt, click.Abort):
        return _said("stopped; the same command again goes on from here", INTERRUPTED)
    except Exception as error:  # the last place where a stack becomes a sentence
        from lr_ray.llm.spending import Stopped
        from lr_ray.runtime import root

        if os.environ.get("LR_RAY_TRACEBACK"):
            traceback.print_exception(error)
        cause = root(error)
        text = " ".join(str(cause).split()) or "no message"
        if isinstance(cause, ValueError):
            return _said(text, BAD_INPUT)
        if isinstance(cause, Stopped):
            return _said(f"stopped early: {text}", STOPPED)
        return _said(f"{type(cause).__name__}: {text}", STOPPED)
    return code if isinstance(code, int) else 0


def _said(sentence: str, code: int) -> int:
    print(f"lr-ray: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
