"""Answers by a server that speaks as OpenAI's does, by the official client: one limiter, and no retry beside it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from rfflow.config.targets import check_arguments
from rfflow.errors import ConfigError, nearest
from rfflow.evals.limiter import Limiter, retry_after
from rfflow.evals.prompts import Messages
from rfflow.worker.evaluation.replies import Reply

_REFUSED = 12
"""How often a request is sent again that was refused for the quota's sake."""


class ServerGenerator:
    """Asks for chat completions.

    Args:
        model: as the server calls it.
        limiters: those of this process, by server and model: runs that ask the same share one.
        base_url: the server; ``None`` is OpenAI's, or what ``OPENAI_BASE_URL`` says.
        api_key_variable: the variable of the environment that holds the key.
        max_tokens: the longest answer.
        rpm, tpm: requests and tokens a minute that the server allows; ``None`` is no limit.
        prices: of a million tokens: ``{input: 0.15, output: 0.6}``.
        attempts: how often a request is sent that the server could not answer, or that took too long.
        timeout: seconds for one.
        kwargs: other arguments of ``chat.completions.create`` (``temperature``, ``seed``, ...).
    """

    def __init__(
        self,
        model: str,
        limiters: dict[str, Limiter],
        base_url: str | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
        max_tokens: int = 64,
        rpm: float | None = None,
        tpm: float | None = None,
        prices: dict[str, float] | None = None,
        attempts: int = 4,
        timeout: float = 60.0,
        **kwargs: Any,
    ):
        try:
            import openai
        except ImportError as error:
            raise ConfigError("generator=openai wants the package openai: pip install 'rfflow[api]'.") from error
        for name in ("httpx", "httpx2", "openai"):
            logging.getLogger(name).setLevel(logging.WARNING)  # a line a request otherwise
        for name, value in (("rpm", rpm), ("tpm", tpm)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
                raise ConfigError(f"generator.{name} is {value!r}. Allowed: a number above 0, or null for no limit.")
        self._openai = openai
        self._url = base_url
        self._given = {"model": model, "max_tokens": max_tokens, **kwargs}
        create = openai.resources.chat.completions.AsyncCompletions.create
        check_arguments(create, {"_target_": "chat.completions.create", **kwargs}, "generator")
        self._prices = _checked(prices)
        self._attempts = attempts
        key = os.environ.get(api_key_variable)
        if key is None and base_url is None:
            raise ConfigError(f"generator=openai wants a key in {api_key_variable}, which is not set.")
        self._settings: dict[str, Any] = {"base_url": base_url, "api_key": key or "none", "timeout": timeout}
        self._client: Any = None
        self._limiter = limiters.setdefault(f"{base_url} {model} {rpm} {tpm}", Limiter(rpm, tpm))

    def check(self, prompts: Sequence[Messages], names: Sequence[str]) -> None:
        """Ask the server whether it is there, takes the key and has the model: that costs nothing.

        Raises:
            ConfigError: if not, or if a prompt alone is more than the limit.
        """
        for prompt in prompts:
            self._limiter.check(self._most(prompt))
        openai, where = self._openai, self._url or "OpenAI's server"
        try:
            models = [each.id for each in openai.OpenAI(**self._settings, max_retries=1).models.list()]
        except openai.APIConnectionError as error:
            raise ConfigError(f"generator: {where} cannot be reached: {error.__cause__ or error}.") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigError(f"generator: {where} refuses the key: {error}.") from error
        except Exception as error:  # a server need not list its models
            logging.getLogger(__name__).info("%s does not list its models: %s", where, error)
            return
        model = self._given["model"]
        if models and model not in models:
            raise ConfigError(
                f"generator.model is {model!r}, and {where} has no such model.{nearest(model, models)} "
                f"There: {', '.join(sorted(models)[:20])}."
            )

    async def __call__(self, messages: Messages) -> Reply:
        """Answer one."""
        openai = self._openai
        if self._client is None:
            self._client = openai.AsyncOpenAI(**self._settings, max_retries=0)
        failures = refusals = 0
        while True:
            await self._limiter.acquire(self._most(messages))
            began = time.monotonic()
            try:
                answered = await self._client.chat.completions.create(messages=messages, **self._given)
                return self._read(answered, time.monotonic() - began)
            except openai.RateLimitError as error:
                refusals += 1
                if refusals > _REFUSED:
                    return Reply(None, error=f"refused {refusals} times: {error}")
                self._limiter.refused(retry_after(error.response.headers, refusals))
            except (openai.APIConnectionError, openai.InternalServerError, _Unreadable, ValueError) as error:
                failures += 1
                if failures >= self._attempts:
                    return Reply(None, error=f"{type(error).__name__.lstrip('_')} ({failures} times): {error}")
                headers = error.response.headers if isinstance(error, openai.APIStatusError) else None
                await self._limiter.wait(retry_after(headers, failures) if headers else 0.25 * 2**failures)
            except openai.APIError as error:  # not for a second try: the request is wrong
                return Reply(None, error=f"{type(error).__name__}: {error}")

    def _read(self, answered: Any, seconds: float) -> Reply:
        try:
            text, usage = answered.choices[0].message.content, answered.usage
        except (AttributeError, IndexError, TypeError) as error:
            raise _Unreadable(f"the server's answer cannot be read: {str(answered)[:80]!r}") from error
        if not isinstance(text, str):
            raise _Unreadable("the server's answer has no text")
        tokens = {
            name: value
            for name in ("prompt_tokens", "completion_tokens")
            if isinstance(value := getattr(usage, name, None), int)
        }
        paid = tokens.get("prompt_tokens", 0) * self._prices.get("input", 0.0)
        paid += tokens.get("completion_tokens", 0) * self._prices.get("output", 0.0)
        return Reply(text, tokens, cost=paid / 1e6, latency=seconds)

    def _most(self, messages: Messages) -> int:
        """Return how many tokens a request may take: a token has three characters or more."""
        return sum(len(message["content"]) for message in messages) // 3 + int(self._given["max_tokens"])


class _Unreadable(Exception):
    """The server has answered, and not what was asked for."""


def _checked(prices: dict[str, float] | None) -> dict[str, float]:
    for name, value in (prices or {}).items():
        is_price = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        if name not in ("input", "output") or not is_price:
            raise ConfigError(
                f"generator.prices.{name} is {value!r}. Allowed: input and output, each what a million tokens cost."
            )
    return dict(prices or {})
