"""Answers by a server that speaks as OpenAI's does, by the official client: one limiter, and no retry beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rfflow.config.fields import whole_number
from rfflow.config.paths import cache_folder
from rfflow.config.quotas import host_of, url_of
from rfflow.config.targets import check_arguments
from rfflow.errors import ConfigError, nearest
from rfflow.evals.kept_answers import KeptAnswer, KeptAnswers, Keys
from rfflow.evals.limiter import BudgetSpent, Leave, retry_after
from rfflow.evals.prompts import Messages
from rfflow.evals.quotas import Quotas
from rfflow.runs.forecast import Forecast
from rfflow.worker.evaluation.replies import Reply

_REFUSED = 12
"""How often a request is sent again that was refused for the quota's sake."""
_OWN = ("base_url", "api_key_variable", "max_tokens", "attempts", "timeout", "cache", "concurrency")
"""Arguments of the section that are no server's."""
_MOVED = {"rpm": "limits", "tpm": "limits", "usd": "limits", "prices": "prices"}


class ServerGenerator:
    """Asks for chat completions.

    Args:
        model: as the server calls it.
        quotas: what servers allow and cost, the same for all runs.
        base_url: the server; ``None`` is OpenAI's, or what ``OPENAI_BASE_URL`` says.
        api_key_variable: the variable of the environment that holds the key.
        max_tokens: the longest answer; ``max_completion_tokens`` takes its place, for models that want that.
        attempts: how often a request is sent that the server could not answer, or that took too long.
        timeout: seconds for one.
        cache: whether answers are kept on disk, and taken from there, across experiments; errors never are.
        kwargs: other arguments of ``chat.completions.create`` (``temperature``, ``seed``, ...).
    """

    asked_by_arguments = ("attempts", "timeout", "api_key_variable", "cache")
    """Arguments on which no answer depends."""

    def __init__(
        self,
        model: str,
        quotas: Quotas,
        base_url: str | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
        max_tokens: int = 64,
        attempts: int = 4,
        timeout: float = 60.0,
        cache: bool = False,
        **kwargs: Any,
    ):
        try:
            import openai
        except ImportError as error:
            raise ConfigError("generator=openai wants the package openai: pip install 'rfflow[api]'.") from error
        for name in ("httpx", "httpx2", "openai"):
            # A line a request otherwise. A level would be the run's own, and what is on its way comes back at any time.
            logging.getLogger(name).addFilter(_is_warning)
        for name in kwargs:
            if name in _MOVED:
                raise ConfigError(
                    f"generator.{name} is {kwargs[name]!r}, and stands at the root: {_MOVED[name]}.{model}..."
                )
        self._openai = openai
        self.model = model
        url = url_of(base_url)
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"generator.base_url is {url!r}. Allowed: an address with http:// or https://. Did you mean "
                f"'http://{url}'?"
            )
        self._where, self.server = base_url or "OpenAI's server", host_of(url)
        self._most = whole_number(kwargs.get("max_completion_tokens", max_tokens), "generator.max_tokens")
        self._attempts = whole_number(attempts, "generator.attempts")
        self._given = {"model": model, **kwargs}
        if "max_completion_tokens" not in kwargs:
            self._given["max_tokens"] = max_tokens
        create = openai.resources.chat.completions.AsyncCompletions.create
        check_arguments(create, {"_target_": "chat.completions.create", **kwargs}, "generator", besides=_OWN)
        key = os.environ.get(api_key_variable)
        self._key = f"the key in {api_key_variable}" if key else f"who has no key ({api_key_variable} is not set)"
        if key is None and base_url is None:
            raise ConfigError(f"generator=openai wants a key in {api_key_variable}, which is not set.")
        self._settings: dict[str, Any] = {"base_url": url, "api_key": key or "none", "timeout": timeout}
        self._client: Any = None
        if not isinstance(cache, bool):
            raise ConfigError(f"generator.cache is {cache!r}. Allowed: true or false.")
        self._kept = KeptAnswers(cache_folder("answers")) if cache else None
        self._keys = Keys(url, self._given)
        self._price = quotas.price(self.server, model)
        self._limiter = quotas.limiter(self.server, model)

    def check(self, prompts: Sequence[Messages], names: Sequence[str]) -> None:
        """Ask the server whether it is there, takes the key and has the model: that costs nothing.

        Raises:
            ConfigError: if not, or if a prompt alone is more than the limit.
        """
        for prompt in prompts:
            self._limiter.check(self._tokens(prompt), self._cost(prompt))
        openai, where = self._openai, self._where
        try:
            models = [each.id for each in openai.OpenAI(**self._settings, max_retries=0).models.list()]
        except openai.APIConnectionError as error:
            raise ConfigError(
                f"generator: {where} cannot be reached: {error.__cause__ or error}. Is it running, and is this where? "
                "generator.base_url=http://HOST:PORT/v1 names another."
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigError(f"generator: {where} refuses {self._key}: {error}.") from error
        except Exception as error:  # a server need not list its models
            logging.getLogger(__name__).info("%s does not list its models: %s", where, error)
            return
        model = self._given["model"]
        if models and model not in models:
            raise ConfigError(
                f"generator.model is {model!r}, and {where} has no such model.{nearest(model, models)} "
                f"There: {', '.join(sorted(models)[:20])}."
            )

    def remember(self, prompts: Sequence[Messages]) -> None:
        """Learn what the run has had answers to before this process: those are no samples to come."""
        if self._kept is not None:
            for prompt in prompts:
                self._keys.of(prompt)

    def forecast(self, prompts: Sequence[Messages]) -> Forecast:
        """Return what these may take, less those whose answers are kept."""
        if self._kept is not None:
            keys = self._keys.copy()
            prompts = [prompt for prompt in prompts if self._kept.get(keys.of(prompt)) is None]
        count, tokens = len(prompts), sum(map(self._tokens, prompts))
        return Forecast(count, tokens, sum(map(self._cost, prompts)), count if self._price is None else 0)

    async def __call__(self, messages: Messages) -> Reply:
        """Answer one.

        Raises:
            BudgetSpent: if there is no money left for it, or the server says so.
        """
        key = "" if self._kept is None else self._keys.of(messages)
        if self._kept is not None and (kept := self._kept.get(key)) is not None:
            return Reply(kept.text, kept.usage, latency=kept.latency, is_kept=True)
        reply = await self._ask(messages)
        if self._kept is not None and reply.text is not None:
            usage = {name: int(count) for name, count in reply.usage.items()}
            self._kept.put(key, KeptAnswer(reply.text, usage, reply.latency))
        return reply

    async def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.close()

    async def _ask(self, messages: Messages) -> Reply:
        tries = _Tries()
        while True:
            async with self._limiter.leave(self, self._tokens(messages), self._cost(messages)) as leave:
                reply = await self._try(messages, leave, tries)
            tries.paid += leave.paid
            if reply is not None:
                return Reply(reply.text, reply.usage, tries.paid, reply.latency, error=reply.error)
            if tries.wait:
                await asyncio.sleep(tries.wait)

    async def _try(self, messages: Messages, leave: Leave, tries: _Tries) -> Reply | None:
        """Send a request; ``None`` is for another try."""
        openai = self._openai
        if self._client is None:
            self._client = openai.AsyncOpenAI(**self._settings, max_retries=0)
        began, tries.wait = time.monotonic(), 0.0
        try:
            answered = await self._client.chat.completions.create(messages=messages, **self._given)
            return self._read(answered, leave, time.monotonic() - began)
        except openai.RateLimitError as error:
            leave.paid = 0.0
            if error.code == "insufficient_quota":
                raise BudgetSpent(f"{self._where} says that there is no money left: {error}") from error
            tries.refusals += 1
            if tries.refusals > _REFUSED:
                return Reply(None, error=f"refused {tries.refusals} times: {error}")
            self._limiter.refused(retry_after(error.response.headers, tries.refusals), leave)
            return None
        except (openai.APIConnectionError, openai.InternalServerError, _Unreadable, ValueError) as error:
            if not isinstance(error, openai.APITimeoutError | _Unreadable | ValueError):
                leave.paid = 0.0  # the others may have been answered, and paid for
            tries.failures += 1
            if tries.failures >= self._attempts:
                return Reply(None, error=f"{type(error).__name__.lstrip('_')} ({tries.failures} times): {error}")
            headers = error.response.headers if isinstance(error, openai.APIStatusError) else None
            tries.wait = retry_after(headers, tries.failures) if headers else 0.25 * 2**tries.failures
            return None
        except openai.APIError as error:  # not for a second try: the request is wrong
            leave.paid = 0.0
            return Reply(None, error=f"{type(error).__name__}: {error}")

    def _read(self, answered: Any, leave: Leave, seconds: float) -> Reply:
        usage = getattr(answered, "usage", None)
        tokens = {
            name: value
            for name in ("prompt_tokens", "completion_tokens")
            if isinstance(value := getattr(usage, name, None), int)
        }
        if len(tokens) == 2 and self._price is not None:
            leave.paid = self._price.of(tokens["prompt_tokens"], tokens["completion_tokens"])
        try:
            choice = answered.choices[0]
            text, why = choice.message.content, getattr(choice, "finish_reason", None)
        except (AttributeError, IndexError, TypeError) as error:
            raise _Unreadable(f"the server's answer cannot be read: {str(answered)[:80]!r}") from error
        if not isinstance(text, str) and why is None:
            raise _Unreadable("the server's answer has no text")
        if not isinstance(text, str):  # it would be the same another time, and be paid for again
            hint = f", and generator.max_tokens is {self._most}" if why == "length" else ""
            return Reply(None, tokens, latency=seconds, error=f"no text in the answer: finish_reason is {why!r}{hint}")
        return Reply(text, tokens, latency=seconds)

    def _tokens(self, messages: Messages) -> int:
        """Return how many tokens a request may take."""
        return _prompt_tokens(messages) + self._most

    def _cost(self, messages: Messages) -> float:
        """Return what a request may cost, in USD; 0 where nobody has said."""
        return 0.0 if self._price is None else self._price.of(_prompt_tokens(messages), self._most)


@dataclass
class _Tries:
    """How an item has fared so far."""

    failures: int = 0
    refusals: int = 0
    wait: float = 0.0
    """Seconds before the next try, besides what the limiter says."""
    paid: float = 0.0


class _Unreadable(Exception):
    """The server has answered, and not what was asked for."""


def _prompt_tokens(messages: Messages) -> int:
    """Return the most tokens that a prompt may have: one has three bytes or more, and a message a few besides."""
    return sum(len(message["content"].encode()) // 3 + 8 for message in messages)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
