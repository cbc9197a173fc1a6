"""Repairs: the next request for an invalid answer, made of the complaint and as little else as it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_llm_provider.engine.calls import Call
from airflow_llm_provider.engine.json_repair import is_cut_off, member_spans, replace_members, writable
from airflow_llm_provider.engine.output_type import OutputType, described
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

# Fields of a request that are about the document and not about the answer.
_NOT_IN_SMALL = ("thinking", "stop_sequences", "tools", "tool_choice")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """A request that may correct an answer.

    Attributes:
        request: What to send.
        has_source: Whether it continues the conversation with the document; a small repair shows the answer alone.
        draft: The JSON object into which the fields of the reply are put; None if the reply is the whole answer.
        names: The names of those fields; all others stay as they are.
    """

    request: Request
    has_source: bool
    draft: str | None = None
    names: Sequence[str] = ()

    def answer(self, reply: str, output: OutputType) -> str:
        """Return the whole answer, with what the reply repaired."""
        # A reply that is not one JSON object is not put in. Its own check complains about it.
        if self.draft is None or (structure := output.structure(reply)) is None:
            return reply
        spans = member_spans(structure)
        return replace_members(
            self.draft, {name: structure[slice(*spans[name])] for name in self.names if name in spans}
        )


def repair(
    asked: Request, error: InvalidOutput, output: OutputType, *, framing: Framing, small: bool
) -> Repair:
    """Return the next request for an invalid answer.

    Args:
        asked: The conversation with the document, and the answers given in it.
        error: The complaint, and the whole answer that it is about.
        output: What an answer must be.
        framing: How text is put into the request as data.
        small: Whether a request without the document is allowed.
    """
    # A request cannot hold half of a surrogate pair.
    answer = writable(error.reply_text)
    # An empty answer has nothing that could be written differently.
    needed = error.needs_source or not answer.strip()
    if small and not needed and (made := _small(asked, answer, error, output, framing)):
        return made
    request = asked.followed_by(
        # The API rejects a message without text.
        {"role": "assistant", "content": answer.strip() or "(nothing)"},
        {
            "role": "user",
            "content": [
                # A complaint may quote the answer or the document, so it is data and not part of the instruction.
                text_block(error.complaint, framing, title="complaint"),
                {"type": "text", "text": _WITH_SOURCE},
            ],
        },
    )
    return Repair(request=request, has_source=True)


def _small(
    asked: Request, answer: str, error: InvalidOutput, output: OutputType, framing: Framing
) -> Repair | None:
    """Return a request without the document, for the fields at fault, or for all fields if none are named."""
    if output.is_text:
        return Repair(request=_about(asked, answer, error, framing, _WHOLE), has_source=False)
    structure = output.structure(answer)
    if structure is None and is_cut_off(answer):
        return None  # the rest of the answer is unknown
    spans = member_spans(structure) if structure else {}
    names = [name for name in output.top_level(error.fields) if name in spans]
    if names and structure:
        bad = [f'"{name}": {structure[slice(*spans[name])]}' for name in names]
        shown, draft = "{" + ", ".join(bad) + "}", structure
    else:
        names, shown, draft = list(output.fields), answer, "{}"
    # A request whose type the API does not enforce has no schema, and neither has its repair.
    enforce = asked.schema is not None
    if not names or (part := output.part(names, enforce=enforce)) is None:
        return None
    instruction = _FIELDS if enforce else f"{_FIELDS}\n\n{described(part)}"
    request = _about(asked, shown, error, framing, instruction)
    request = dataclasses.replace(request, schema=part) if enforce else request
    return Repair(request=request, has_source=False, draft=draft, names=names)


def _about(asked: Request, answer: str, error: InvalidOutput, framing: Framing, instruction: str) -> Request:
    content = [
        {"type": "text", "text": instruction},
        text_block(answer, framing, title="answer"),
        text_block(error.complaint, framing, title="complaint"),
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
    """Counts the repairs of a run that read the document again, to decide whether caching it saves money.

    A cache write costs 1.25 times the price of input, a cache read 0.1 times
    (https://platform.claude.com/docs/en/build-with-claude/prompt-caching). Marking every document adds 0.25 of its
    price to every first request and saves 0.9 of it in every such repair, so it saves money above 0.25 / 0.9 repairs
    per document.

    Attributes:
        documents: First answers that were paid.
        repairs: Repairs that read the document again.
    """

    documents: int = 0
    repairs: int = 0

    def count(self, bought: Call, fix: Repair | None) -> None:
        """Count a call, if it was sent now."""
        if bought.sends and bought.purpose == "answer":
            self.documents += 1
        elif bought.sends and fix is not None and fix.has_source:
            self.repairs += 1

    @property
    def caching_pays(self) -> bool:
        """Whether marking documents for the cache saves money; decided after fifty documents."""
        return self.documents >= 50 and self.repairs > self.documents * 0.25 / 0.9
