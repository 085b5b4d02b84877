"""What servers allow and cost: the same for all runs of a process."""

from __future__ import annotations

from collections.abc import Mapping

from rfflow.config.quotas import key_for
from rfflow.config.spec import PriceSpec, QuotasSpec
from rfflow.errors import ConfigError
from rfflow.evals.limiter import Limiter


class Quotas:
    """One limiter a key of ``limits``, and one a model that no key is about."""

    def __init__(self, spec: QuotasSpec = QuotasSpec()):  # noqa: B008  # frozen
        self.spec = spec
        self._limiters: dict[str, Limiter] = {}

    def begin(self, spent: Mapping[str, float]) -> None:
        """Learn what was spent so far, here and by workers that are gone, by the keys of the limits."""
        for key, usd in spent.items():
            if key in self.spec.limits and key not in self._limiters:
                self._limiters[key] = Limiter(self.spec.limits[key], key, usd)
            elif key in self._limiters:
                self._limiters[key].spent = max(self._limiters[key].spent, usd)

    def limiter(self, server: str, model: str) -> Limiter:
        """Return the limiter of a model.

        Raises:
            ConfigError: if there is a budget and no price.
        """
        key = key_for(self.spec.limits, server, model)
        name = key or f"{server}/{model}"
        if name not in self._limiters:
            self._limiters[name] = Limiter(self.spec.limits[key], key) if key else Limiter(name=name)
        limiter = self._limiters[name]
        if limiter.limit.usd is not None and self.price(server, model) is None:
            raise ConfigError(
                f"limits.{key}.usd is {limiter.limit.usd:g}, and prices does not say what {model} costs. Say "
                f"'prices={{{model}: {{input: 0.15, output: 0.6}}}}', each of a million tokens in USD."
            )
        return limiter

    def price(self, server: str, model: str) -> PriceSpec | None:
        """Return what a model costs, where that is said."""
        key = key_for(self.spec.prices, server, model)
        return None if key is None else self.spec.prices[key]
