"""Structured logs: one JSON object a line on stderr, which Ray keeps with the logs of its session.

Every line has `time`, `level`, `event` and `run`; the events of prompts have `prompt_id`, those of calls
`unit` (prompt/candidate/kind/index, as in the header X-Lr-Unit). What a model wrote is in `text` and `texts`,
and only with `log.text`. Lines are ASCII: control characters and all else from data is escaped, long values
are cut, and what the environment holds as a key stands there as ***.
"""

import json
import logging
import os
import re
import sys
import time
from functools import cache
from typing import Any

from lr_ray.config import Config
from lr_ray.metrics import run_label

LONGEST, LONGEST_TEXT = 500, 20_000  # characters of a field, and of what a model wrote
TEXTS = ("text", "texts")
SHORTEST_SECRET = 6  # characters; less is no key (none, EMPTY, …), and would blot out words
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "off": 100}
_SECRET_NAMES = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTHORIZATION", re.IGNORECASE)
_SECRET_FORMS = re.compile(r"(?i:bearer|basic)\s+[\w.~+/=-]{6,}|\bsk-[\w-]{6,}|(?<=://)[^\s/@]+(?=@)")


class Journal:
    """The events of one run in one process, from `level` on. Cheap to pickle; holds no secret.

    `key_env` names one more environment variable whose value must not be written.
    """

    def __init__(self, run: str, level: str = "off", text: bool = False, key_env: str = "") -> None:
        self._run, self._level, self._key_env = run, _LEVELS[level], key_env
        self.text = text

    @property
    def every_call(self) -> bool:
        """Whether `debug` writes anything: worth a look before fields are put together for each call."""
        return self._level <= logging.DEBUG

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if level < self._level:
            return
        # No logger: a library that configures logging can switch off all of those.
        now = time.time()
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03}Z"
        line = {"time": at, "level": logging.getLevelName(level).lower(), "event": event, "run": self._run}
        for name, value in fields.items():
            if value is not None and (self.text or name not in TEXTS):
                line[name] = _safe(name, value, self._key_env)
        sys.stderr.write(json.dumps(line, default=str) + "\n")


SILENT = Journal("")


def of(config: Config) -> Journal:
    """The journal of a run, as its config has it."""
    log = config.log
    return Journal(run_label(config.run_dir), log.level, log.text, config.judge.api_key_env)


def _safe(name: str, value: Any, key_env: str) -> Any:
    if isinstance(value, str):
        return _cut(_without_secrets(value, key_env), LONGEST_TEXT if name in TEXTS else LONGEST)
    if isinstance(value, list | tuple):
        return [_safe(name, item, key_env) for item in value]
    if isinstance(value, dict):
        return {str(key): _safe(name, item, key_env) for key, item in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def _without_secrets(text: str, key_env: str) -> str:
    for secret in _secrets(key_env):
        text = text.replace(secret, "***")
    return _SECRET_FORMS.sub("***", text)


@cache
def _secrets(key_env: str) -> list[str]:
    """Values of the environment that no line may hold, the longest first."""
    names = (name for name in os.environ if name == key_env or _SECRET_NAMES.search(name))
    values = {os.environ[name].strip() for name in names}
    secrets = (value for value in values if len(value) >= SHORTEST_SECRET and not value.isdecimal())
    return sorted(secrets, key=len, reverse=True)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text) - longest} more characters)"
