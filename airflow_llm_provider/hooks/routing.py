"""Routing as a DAG author states it: which models answer, and what is tried when they don't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.engine.retry import policies
from airflow_llm_provider.engine.run import Engine
from airflow_llm_provider.engine.terms import Fallback, Route

if TYPE_CHECKING:
    from airflow_llm_provider.hooks.settings import Settings

_CONNECTION = "conn:"  # a fallback that is another connection rather than a model


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The arguments of that name, which ClaudeOperator describes; names are tiers, model ids or `conn:ID`."""

    model: str | Sequence[str] | None = None
    min_confidence: float | None = None
    fallbacks: Sequence[str] | None = None
    fall_back_on: Sequence[str] = ("network", "overloaded", "server")
    retry: Mapping[str, Any] | None = None
    max_repairs: int = 3

    def connections(self, settings: Settings) -> list[str]:
        """Return the ids of the other connections that fallbacks name."""
        names = self._fallbacks(settings)
        return [name.removeprefix(_CONNECTION) for name in names if name.startswith(_CONNECTION)]

    def first_model(self, settings: Settings) -> str:
        """Return the id of the model that is asked first."""
        return settings.model(self._models[0])

    def terms(self, engine: Engine, settings: Mapping[str | None, Settings]) -> dict[str, Any]:
        """Return the terms of the engine that this routing comes to.

        settings: of the task's own connection under None, and of `connections` under their ids; the engine
        gets their clients.
        """
        own = settings[None]
        fallbacks: list[Fallback] = []
        for name in self._fallbacks(own):
            if not name.startswith(_CONNECTION):
                fallbacks.append(Fallback(model=own.model(name)))
                continue
            conn_id = name.removeprefix(_CONNECTION)
            other = settings[conn_id]
            engine.pace.limit(conn_id, other.limits)
            engine.other_prices[conn_id] = other.prices
            fallbacks.append(
                Fallback(
                    model=other.model(self._models[0]),
                    client=engine.adopt(other.client),
                    endpoint=other.client.endpoint,
                    connection_id=conn_id,
                )
            )
        terms: dict[str, Any] = {
            "max_repairs": self.max_repairs,
            "route": Route(
                escalate=[own.model(model) for model in self._models[1:]],
                min_confidence=self.min_confidence,
                fallbacks=fallbacks,
                fall_back_on=frozenset(self.fall_back_on),
            ),
        }
        if self.retry:
            terms["policies"] = policies(self.retry)
            if "invalid_output" in self.retry:
                terms["max_repairs"] = terms["policies"]["invalid_output"].attempts - 1
        return terms

    def _fallbacks(self, settings: Settings) -> Sequence[str]:
        return settings.fallbacks if self.fallbacks is None else self.fallbacks

    @property
    def _models(self) -> Sequence[str | None]:
        return [self.model] if self.model is None or isinstance(self.model, str) else list(self.model)
