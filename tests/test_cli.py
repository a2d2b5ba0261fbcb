import re
import subprocess
import sys
import urllib.request

import click
import pytest

from lr_ray import cli
from lr_ray.llm.spending import Stopped
from lr_ray.simulated import Knobs


def raising(error: BaseException) -> int:
    def command() -> None:
        raise error

    return cli.guarded(command)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (Stopped("judge.budget is reached"), 3, "lr-ray: stopped early: judge.budget is reached"),
        (ValueError("p.jsonl: no such file"), 2, "lr-ray: p.jsonl: no such file"),
        (OSError("the disk is full"), 3, "lr-ray: OSError: the disk is full"),
        (KeyboardInterrupt(), 130, "lr-ray: stopped; the same command again goes on from here"),
    ],
)
def test_each_end_has_its_code_and_one_sentence(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == code
    assert capsys.readouterr().err.strip() == says


def test_every_knob_of_the_simulated_judge_is_an_option() -> None:
    options = {parameter.name for parameter in cli.cli.commands["simulate-judge"].params}
    assert options - {"host", "port"} == {
        field for field in Knobs.__annotations__ if field not in ("api_key", "model")
    }


def test_the_help_fits_80_columns_and_says_how_a_call_can_end() -> None:
    shown = cli.cli.get_help(click.Context(cli.cli, info_name="lr-ray", terminal_width=80))
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    verbs = lines[lines.index("Commands:") + 1 :]
    # A line that click had to cut ends with three dots, and a second line would begin with blanks.
    assert [line.split()[0] for line in verbs] == sorted(cli.cli.commands)
    assert all(re.search(r"[^.]\.$", line) for line in verbs)
    for code in (cli.BAD_INPUT, cli.STOPPED, cli.INTERRUPTED):
        assert re.search(rf"^    {code} ", shown, re.MULTILINE)
    assert "goes on where" in shown


@pytest.mark.parametrize("verb", sorted({*cli.cli.commands} - {"submit"}))
def test_every_verb_says_what_it_reads_and_writes(verb: str) -> None:
    text = cli.cli.commands[verb].help or ""
    assert "Reads " in text
    assert "rites " in text


@pytest.mark.parametrize(
    "option", ["--port=99999", "--port=-1", "--latency=-1", "--cache-blocks=-1", "--cache-block=0"]
)
def test_numbers_that_cannot_be_are_bad_input(option: str) -> None:
    command = cli.cli.commands["simulate-judge"]
    with pytest.raises(click.BadParameter, match="is not in the range"):
        command.make_context("simulate-judge", [option])


def test_the_simulated_judge_starts_from_the_command_line() -> None:
    options = [
        "--port",
        "0",
        "--requests-per-minute",
        "600@0,60@9",
        "--faults",
        "empty=0.1",
        "--headers",
        "--plain",
    ]
    command = [sys.executable, "-m", "lr_ray.cli", "simulate-judge", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        with urllib.request.urlopen(f"{found[0]}/models", timeout=10) as reply:  # noqa: S310 - loopback
            assert reply.status == 200
        process.terminate()
    wrong = subprocess.run(
        [*command[:4], "--faults", "boredom=1"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "no kind 'boredom'" in wrong.stderr
