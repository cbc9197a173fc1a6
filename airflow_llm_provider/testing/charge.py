"""What the stand-in charges for a reply: each pass of a model, where and how fast it ran, and tools of the server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.wire import ApiError, Model, ServerSteps, Usage

FOUND_TOKENS = 2_000  # what a web search or a web fetch adds to the next prompt
_ANSWERING = ("message", "fallback_message")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass of a model over a prompt, as an entry of `usage.iterations`."""

    kind: str
    model: str
    usage: Usage
    was_fast: bool = False

    def to_api(self, answering: str) -> dict[str, Any]:
        """Return the entry; like the API, it may leave out the model that answered."""
        is_clear = self.kind in ("message", "compaction") and self.model == answering
        return {"type": self.kind, **({} if is_clear else {"model": self.model}), **self.usage.to_api()}

    def line(self) -> dict[str, Any]:
        """Return the pass as the invoice has it."""
        return {"model": self.model, "was_fast": self.was_fast, **asdict(self.usage)}


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What is charged for one reply.

    Attributes:
        passes: in order; the last one of the kinds `message` and `fallback_message` wrote the answer.
        declined: the model that was asked and declined, if a fallback answered; else None.
        inference_geo: where it ran.
        speed: `standard` or `fast`.
        web_searches: how many, at a fee each.
        web_fetches: how many.
    """

    passes: tuple[Pass, ...]
    declined: str | None = None
    inference_geo: str = "global"
    speed: str = "standard"
    web_searches: int = 0
    web_fetches: int = 0

    @classmethod
    def of(
        cls,
        question: Question,
        usage: Usage,
        models: Mapping[str, Model],
        workspace_geo: str,
        steps: ServerSteps,
    ) -> Self:
        """Return the charge for an answer that takes `usage` without the steps of the server.

        Raises:
            ApiError: the request does not allow these steps.
        """
        _check_steps(question, steps)
        hops = [question.model, *(hop["model"] for hop in question.body.get("fallbacks") or ())]
        if hops[steps.fallbacks] not in models:
            raise ApiError(404, f"model: {hops[steps.fallbacks]}")
        answering, body = models[hops[steps.fallbacks]], question.body
        fast = {name for name, model in models.items() if model.has_fast_mode and body.get("speed") == "fast"}
        passes = _passes(question, usage, hops[: steps.fallbacks + 1], steps)
        return cls(
            passes=tuple(replace(each, was_fast=each.model in fast) for each in passes),
            declined=question.model if steps.fallbacks else None,
            inference_geo=(body.get("inference_geo") or workspace_geo)
            if answering.has_geography
            else "not_available",
            speed="fast" if answering.id in fast else "standard",
            web_searches=steps.searches,
            web_fetches=steps.fetches,
        )

    @property
    def model(self) -> str:
        """Return the model that wrote the answer."""
        return [each.model for each in self.passes if each.kind in _ANSWERING][-1]

    @property
    def usage(self) -> Usage:
        """Return all tokens that are charged."""
        return _sum(each.usage for each in self.passes)

    def to_api(self) -> dict[str, Any]:
        """Return the `usage` object of the message. Its tokens are those of the model that answered alone."""
        own = [each for each in self.passes if each.kind in _ANSWERING and each.model == self.model]
        uses = {"web_search_requests": self.web_searches, "web_fetch_requests": self.web_fetches}
        return {
            **_sum(each.usage for each in own).to_api(),
            "inference_geo": self.inference_geo,
            "service_tier": "standard",
            "speed": self.speed,
            "server_tool_use": uses if any(uses.values()) else None,
            **(
                {"iterations": [each.to_api(self.model) for each in self.passes]}
                if len(self.passes) > 1
                else {}
            ),
        }


def check_terms(body: Mapping[str, Any], model: Model) -> None:
    """Raise ApiError 400 for a geography or speed that the model does not have."""
    if body.get("inference_geo") is not None and not model.has_geography:
        raise ApiError(400, f"inference_geo: not supported for {model.id}")
    if body.get("inference_geo") not in (None, "global", "us"):
        raise ApiError(400, "inference_geo: Input should be 'global' or 'us'")
    if body.get("speed") == "fast" and not model.has_fast_mode:
        raise ApiError(400, f"speed: fast mode is not supported for {model.id}")


def _check_steps(question: Question, steps: ServerSteps) -> None:
    tools = {str(tool.get("type", "")).rsplit("_", 1)[0]: tool for tool in question.body.get("tools") or ()}
    taken = {"web_search": steps.searches, "web_fetch": steps.fetches, "advisor": len(steps.advice_tokens)}
    for name, uses in taken.items():
        allowed = tools.get(name, {}).get("max_uses", uses) if name in tools else 0
        if uses > allowed:
            raise ApiError(
                400, f"stand-in: {uses} uses of {name} were scripted, and the request allows {allowed}"
            )
    if steps.fallbacks > len(question.body.get("fallbacks") or ()):
        raise ApiError(400, "stand-in: a fallback was scripted for a request that has none")
    if steps.summary_tokens is not None and not question.body.get("context_management"):
        raise ApiError(400, "stand-in: a compaction was scripted for a request without context_management")


def _passes(question: Question, usage: Usage, hops: list[str], steps: ServerSteps) -> Iterator[Pass]:
    """Yield the passes: declined ones, a compaction, then one per turn, with an advisor's between them."""
    for model in hops[:-1]:
        yield Pass(kind="message", model=model, usage=replace(usage, output_tokens=1))
    model, prompt = hops[-1], usage
    if steps.summary_tokens is not None:
        yield Pass(kind="compaction", model=model, usage=replace(usage, output_tokens=steps.summary_tokens))
    last = "fallback_message" if len(hops) > 1 else "message"
    for advice in steps.advice_tokens:
        yield Pass(kind="message", model=model, usage=replace(prompt, output_tokens=1))
        advisor = next(tool for tool in question.body["tools"] if str(tool.get("type")).startswith("advisor"))
        whole = prompt.input_tokens + prompt.cache_read_tokens + prompt.cache_write_tokens
        read = Usage(input_tokens=whole + 1, output_tokens=advice)
        yield Pass(kind="advisor_message", model=advisor["model"], usage=read)
        prompt = replace(prompt, input_tokens=prompt.input_tokens + 1 + advice)
    for _ in range(steps.searches + steps.fetches):
        yield Pass(kind="message", model=model, usage=replace(prompt, output_tokens=1))
        prompt = replace(prompt, input_tokens=prompt.input_tokens + 1 + FOUND_TOKENS)
    yield Pass(kind=last, model=model, usage=prompt)


def _sum(usages: Iterable[Usage]) -> Usage:
    kept = list(usages)
    return Usage(**{name: sum(getattr(usage, name) for usage in kept) for name in Usage.__dataclass_fields__})
