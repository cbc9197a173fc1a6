"""The prompt that is asked about every document of a run, and the keys of what it was asked about."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from airflow_llm_provider.documents.content import Content, ceiling_tokens, to_blocks
from airflow_llm_provider.documents.document import Document
from airflow_llm_provider.documents.readers.custom import readers_by_key
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request, to_json
from airflow_llm_provider.options import Options, Reading


@dataclass(frozen=True, kw_only=True)
class DocumentPrompt:
    """What is asked about every document.

    Attributes:
        prompt: the instruction. It stands before the document, so that all requests share it in the prompt cache.
        output: what each answer must be.
        endpoint: where it is asked.
        options: how it is asked.
        reading: how documents are read and sent.
        system: the system prompt.
        asked_by: the task that asks. Estimates of later runs go by what its answers took.
    """

    prompt: str
    output: OutputType
    endpoint: Endpoint
    options: Options = field(default_factory=Options)
    reading: Reading = field(default_factory=Reading)
    system: str | None = None
    asked_by: str = ""
    family: str = field(init=False, repr=False, default="")
    _key: str = field(init=False, repr=False)

    @property
    def model(self) -> str:
        """The id of the model that is asked first."""
        return self.endpoint.model(self.options.models[0])

    def request(self, content: Content | None) -> Request:
        """Return the request about one document; None gives the part that all requests share."""
        fields = self.options.request
        prompt, schema = self.output.asking(self.prompt, fields)
        blocks = [{"type": "text", "text": prompt}]
        document = to_blocks(content, self.reading.framing) if content else []
        return Request(
            model=self.model,
            system=self.system,
            messages=[{"role": "user", "content": blocks + document}],
            max_tokens=fields.max_tokens,
            schema=schema,
            effort=fields.effort,
            extra=fields.extra,
            cache_ttl=fields.cache_ttl,
            endpoint=self.endpoint.address,
            version=self.options.version,
            shared_blocks=len(blocks),
            input_ceiling=ceiling_tokens(content) if content else 0,
            family=self.family,
        )

    def sighting(self, document: Document, stamp: str | None) -> str | None:
        """Return the key of this prompt about a document in the state of `stamp`; None where there is no stamp."""
        if stamp is None:
            return None
        return hashlib.sha256(f"{self._key}\0{document.uri}\0{stamp}".encode()).hexdigest()

    def __post_init__(self) -> None:
        reading = self.reading
        shapes = {
            "framing": reading.framing,
            "pdf": reading.pdf,
            "encoding": reading.encoding,
            "max": reading.max_bytes,
            "attachments": reading.attachments,
            "readers": sorted(readers_by_key(reading).items()),
        }
        # The fingerprint does not say how a file is read, which changes the request about the same file, too.
        key = hashlib.sha256(self.request(None).fingerprint.encode() + to_json(shapes)).hexdigest()
        # Without the prompt: it may name the day, and answers to an edited prompt are still the best estimate.
        shared = [self.asked_by, self.endpoint.address, self.options.version, self.output.schema]
        fields = self.options.request
        family = hashlib.sha256(to_json([*shared, fields.effort, fields.enforce])).hexdigest()[:16]
        # The way to keep derived values in a frozen dataclass.
        object.__setattr__(self, "family", family)
        object.__setattr__(self, "_key", key)
