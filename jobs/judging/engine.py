"""What a real inference server finds in its prefix cache of a judge's calls, by its own count.

The server computes every prompt, and one token; what a judge would have answered comes from the rules of the
simulated judge, so that any model will do. Each way has a salt of its own and so finds nothing of another's.
"""

import asyncio
from typing import Any

from jobs.judging import prefix_cache
from lr_ray.config import Judge
from lr_ray.llm.calls import Call
from lr_ray.rows import Sampled


class Server(prefix_cache.Endpoint):
    """Sums what the server counts."""

    def __init__(self, api: Any, settings: Judge, salt: str) -> None:
        super().__init__(None, settings.concurrency, late=False)
        self.prompt_tokens = self.cached_tokens = 0
        self._api, self._model, self._salt = api, settings.model, salt

    async def send(self, call: Call[Any]) -> None:
        """Have the server compute the prompt."""
        reply = await self._api.chat.completions.create(
            model=self._model, messages=call.messages, max_tokens=1, extra_body={"cache_salt": self._salt}
        )
        self.prompt_tokens += reply.usage.prompt_tokens
        details = reply.usage.prompt_tokens_details
        self.cached_tokens += details.cached_tokens or 0 if details else 0


def measure(
    rows: list[Sampled], base_url: str, settings: Judge, *, salt: str, ordered: bool
) -> dict[str, float]:
    """Shares of the prompt tokens: those that the server had cached, and those possible without a limit."""

    async def work() -> Server:
        import openai

        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", timeout=600) as api:
            server = Server(api, settings, salt)
            await prefix_cache.judge(rows, settings, server, ordered=ordered)
            return server

    server = asyncio.run(work())
    return {
        "prompt_tokens": server.prompt_tokens,
        "cached": server.cached_tokens / server.prompt_tokens,
        "possible": server.reuse.possible / server.reuse.blocks,
    }
