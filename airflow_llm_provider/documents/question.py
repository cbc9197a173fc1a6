"""The question that is asked about every document of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from airflow_llm_provider.documents.content import Content, ceiling_tokens, to_blocks
from airflow_llm_provider.documents.document import Document
from airflow_llm_provider.documents.pdf import PdfMode
from airflow_llm_provider.engine.framing import Framing
from airflow_llm_provider.engine.request import Request, to_json
from airflow_llm_provider.engine.validate import OutputType
from airflow_llm_provider.options import MAX_FILE_BYTES


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about every document.

    prompt: the instruction; it goes before the document, so that all requests share it.
    framing: `document` sends text as the API's own document blocks; `tag`, for servers that lack them, in a
        text block between tags that the text can't contain.
    pdf: `auto` (text where a page has it, the page itself where not), `text` or `native`.
    max_bytes: larger documents are dead letters.
    encoding: of text files.
    asked_by: the task that asks; what its answers took is what the next are expected to take.
    """

    prompt: str
    model: str
    output: OutputType
    endpoint: str
    system: str | None = None
    max_tokens: int = 4096
    effort: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    framing: Framing = "document"
    pdf: PdfMode = "auto"
    max_bytes: int = MAX_FILE_BYTES
    encoding: str = "utf-8"
    asked_by: str = ""
    family: str = field(init=False, repr=False, default="")
    _key: str = field(init=False, repr=False)

    def request(self, content: Content | None) -> Request:
        """Return the request about one document; None gives what all of them share."""
        blocks = [{"type": "text", "text": self.prompt}]
        return Request(
            model=self.model,
            system=self.system,
            messages=[
                {"role": "user", "content": blocks + (to_blocks(content, self.framing) if content else [])}
            ],
            max_tokens=self.max_tokens,
            schema=self.output.schema,
            effort=self.effort,
            extra=self.extra,
            endpoint=self.endpoint,
            version=self.version,
            shared_blocks=len(blocks),
            input_ceiling=ceiling_tokens(content) if content else 0,
            family=self.family,
        )

    def sighting(self, document: Document) -> str | None:
        """Return the key of this question about this state of a document; None when only reading tells."""
        if document.stamp is None:
            return None
        return hashlib.sha256(f"{self._key}\0{document.uri}\0{document.stamp}".encode()).hexdigest()

    def __post_init__(self) -> None:
        reading = {"framing": self.framing, "pdf": self.pdf, "encoding": self.encoding, "max": self.max_bytes}
        key = hashlib.sha256(self.request(None).fingerprint.encode() + to_json(reading)).hexdigest()
        # Not the prompt: it may name the day, and an edited one is still the best guide to what an answer takes.
        kin = [self.asked_by, self.endpoint, self.version, self.output.schema, self.effort]
        object.__setattr__(self, "family", hashlib.sha256(to_json(kin)).hexdigest()[:16])
        object.__setattr__(self, "_key", key)  # the one way to keep a derived value in a frozen dataclass
