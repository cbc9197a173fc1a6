"""Repairs: the next request, made from a complaint and no more than it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_llm_provider.engine.calls import Call
from airflow_llm_provider.engine.json_repair import is_cut_off, member_spans, replace_members
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.text_block import Framing, text_block
from airflow_llm_provider.errors import InvalidOutput

_WITH_SOURCE = (
    "Your answer was not valid; the complaint says why. Answer again, in full, with this put right and \
everything else kept."
)

_FIELDS = (
    "The answer is what you, or another, said about a document; the complaint says what is wrong with it. \
Give those fields again with this put right. Work from the answer alone: change how it is written and not what it \
says, and add nothing that is not in it. Leave out a field that can't be put right that way."
)

_WHOLE = (
    "The answer is what you, or another, said about a document; the complaint says what is wrong with it. \
Give the answer again with this put right. Work from it alone: change how it is written and not what it says, and \
add nothing that is not in it."
)

# Parts of a request that are about the document and not about its answer.
_NOT_IN_SMALL = ("thinking", "stop_sequences", "tools", "tool_choice")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """A request that may put an answer right.

    has_source: it continues the conversation in which the document stands; a small one shows the answer alone.
    draft: the JSON object that the fields of the reply are put into; None where the reply is the whole answer.
    names: of those fields; others stay as they are.
    """

    request: Request
    has_source: bool
    draft: str | None = None
    names: Sequence[str] = ()

    def answer(self, reply: str, output: OutputType) -> str:
        """Return the whole answer that a reply comes to."""
        if self.draft is None or (structure := output.structure(reply)) is None:
            return reply
        spans = member_spans(structure)
        return replace_members(
            self.draft, {name: structure[slice(*spans[name])] for name in self.names if name in spans}
        )


def repair(
    asked: Request, error: InvalidOutput, output: OutputType, *, framing: Framing, small: bool
) -> Repair:
    """Return what to ask next.

    asked: the conversation in which the document stands, with the answers given in it.
    error: the complaint, and the whole answer that it is about.
    small: whether a small request may do.
    """
    answer = error.reply_text
    needed = error.needs_source or not answer.strip()
    if small and not needed and (made := _small(asked, answer, error, output, framing)):
        return made
    request = asked.followed_by(
        {"role": "assistant", "content": answer.strip() or "(nothing)"},
        {
            "role": "user",
            "content": [
                text_block(str(error), framing, title="complaint"),
                {"type": "text", "text": _WITH_SOURCE},
            ],
        },
    )
    return Repair(request=request, has_source=True)


def _small(
    asked: Request, answer: str, error: InvalidOutput, output: OutputType, framing: Framing
) -> Repair | None:
    """Return a request without the document: for the fields at fault, or for all of them where none are named."""
    if output.is_text:
        return Repair(request=_about(asked, answer, error, framing, _WHOLE), has_source=False)
    structure = output.structure(answer)
    if structure is None and is_cut_off(answer):
        return None  # nobody knows what came after
    spans = member_spans(structure) if structure else {}
    names = [name for name in output.top_level(error.fields) if name in spans]
    if names and structure:
        bad = [f'"{name}": {structure[slice(*spans[name])]}' for name in names]
        shown, draft = "{" + ", ".join(bad) + "}", structure
    else:
        names, shown, draft = list(output.fields), answer, "{}"
    if not names or (part := output.part(names)) is None:
        return None
    request = dataclasses.replace(_about(asked, shown, error, framing, _FIELDS), schema=part)
    return Repair(request=request, has_source=False, draft=draft, names=names)


def _about(asked: Request, answer: str, error: InvalidOutput, framing: Framing, instruction: str) -> Request:
    content = [
        {"type": "text", "text": instruction},
        text_block(answer, framing, title="answer"),
        text_block(str(error), framing, title="complaint"),
    ]
    return Request(
        model=asked.model,
        messages=[{"role": "user", "content": content}],
        max_tokens=asked.max_tokens,
        extra={name: value for name, value in asked.extra.items() if name not in _NOT_IN_SMALL},
        endpoint=asked.endpoint,
        version=asked.version,
        family=asked.family,
    )


@dataclass(slots=True)
class SourceRepairs:
    """How many repairs of a run read the document again, and whether it pays to have it cached for them.

    Writing to the cache costs 1.25 times what input costs, reading from it 0.1 times
    (https://platform.claude.com/docs/en/build-with-claude/prompt-caching): marking every document adds 0.25 of it
    to every first request and takes 0.9 of it off every such repair, so it pays above 0.25 / 0.9 repairs a document.
    """

    documents: int = 0
    repairs: int = 0

    def count(self, bought: Call, fix: Repair | None) -> None:
        """Count what was bought just now."""
        if bought.sends and bought.purpose == "answer":
            self.documents += 1
        elif bought.sends and fix is not None and fix.has_source:
            self.repairs += 1

    @property
    def caching_pays(self) -> bool:
        """Tell whether the document is worth marking, judged by at least fifty."""
        return self.documents >= 50 and self.repairs > self.documents * 0.25 / 0.9
