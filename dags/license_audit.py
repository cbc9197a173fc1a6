"""What the licenses of all installed packages allow and require: one row per license file.

Every package that pip has installed beside this Airflow brings license and notice files. Claude reads each file and
says which license it is, whether it is copyleft, whether it grants patents and what attribution it requires, with a
quote for each. The same text in a hundred packages is asked about once, and a weekly run pays only for new files.

Rows are written to `$AIRFLOW_HOME/license_audit/rows.jsonl`. The Variable `license_audit_output` names another place
(`.jsonl`, a path or an object storage URL). The last task compares the SPDX ids with the packages' own metadata. To
audit another folder, name it when you trigger the DAG; it must be below the `roots` of the configuration's `[llm]`
section. `dry_run` shows what it would cost, and asks nothing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from airflow.sdk import ObjectStoragePath, Param, dag, get_current_context, task
from pydantic import BaseModel, Field

from airflow_llm_provider import Reading, RequestFields

log = logging.getLogger(__name__)

OUTPUT = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "license_audit" / "rows.jsonl"
PROMPT = """\
Below is a license or notice file from a software package. Say which license it is, and what that license allows \
and demands of somebody who ships the software inside a product of their own.

Go by the text alone. Each quote is copied from the file word for word, one or two sentences of it, and shows the \
very words that the claim beside it rests on; it is null where there are none. A file that only lists names, or \
points to another file, has no license of its own: its SPDX id is `other`."""

SpdxId = Literal[
    "0BSD", "AGPL-3.0", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-4.0", "CC0-1.0",
    "EPL-2.0", "GPL-2.0", "GPL-3.0", "HPND", "ISC", "LGPL-2.1", "LGPL-3.0", "MIT", "MIT-0", "MPL-2.0",
    "OFL-1.1", "PSF-2.0", "Unicode-3.0", "Unlicense", "Zlib", "ZPL-2.1", "other",
]  # fmt: skip
_TELLTALES = """\
0BSD: with or without fee is hereby granted THE SOFTWARE IS PROVIDED;
AGPL-3.0: GNU AFFERO GENERAL PUBLIC LICENSE;
Apache-2.0: Apache License Version 2.0 | Licensed under the Apache License;
BSD-2-Clause: Redistributions in binary form must reproduce the above copyright notice;
BSD-3-Clause: Neither the name of | may not be used to endorse or promote products
  | may be used to endorse or promote products derived from;
BSL-1.0: Boost Software License;
CC-BY-4.0: Creative Commons Attribution 4.0;
CC0-1.0: CC0 1.0 Universal;
EPL-2.0: Eclipse Public License;
GPL-2.0: GNU GENERAL PUBLIC LICENSE Version 2;
GPL-3.0: GNU GENERAL PUBLIC LICENSE Version 3;
HPND: and that both that copyright notice and this permission notice appear in supporting documentation;
ISC: with or without fee is hereby granted, provided that the above copyright notice;
LGPL-2.1: GNU LESSER GENERAL PUBLIC LICENSE Version 2.1;
LGPL-3.0: GNU LESSER GENERAL PUBLIC LICENSE Version 3;
MIT: The MIT License | Permission is hereby granted, free of charge, to any person obtaining a copy;
MPL-2.0: Mozilla Public License Version 2.0;
OFL-1.1: SIL OPEN FONT LICENSE;
PSF-2.0: PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2;
Unicode-3.0: UNICODE LICENSE V3;
Unlicense: This is free and unencumbered software released into the public domain;
Zlib: This software is provided 'as-is', without any express or implied warranty;
ZPL-2.1: Zope Public License"""
_COPYLEFT = """\
Must changes to the files themselves (weak), or whole works that contain them (strong), be passed on under the \
same license?
strong: GNU GENERAL PUBLIC LICENSE Version 2, June 1991 | GNU GENERAL PUBLIC LICENSE Version 3, 29 June 2007
  | GNU AFFERO GENERAL PUBLIC LICENSE Version 3, 19 November 2007;
weak: GNU LESSER GENERAL PUBLIC LICENSE Version 3, 29 June 2007 | Mozilla Public License Version 2.0
  | GNU LESSER GENERAL PUBLIC LICENSE Version 2.1, February 1999 | Eclipse Public License - v 2.0"""
_PATENTS = """\
Does it expressly grant patent rights? It does where it says "Grant of Patent License", "patent license", or
"Contributor hereby grants"."""
_ATTRIBUTION = """\
What must go along with copies: nothing, the copyright and license notice, or these and a note of what was changed.
notice_and_changes: carry prominent notices stating that | a brief summary of the changes made;
notice: copyright notice | this permission notice | must include | must retain;
none: public domain"""


class License(BaseModel):
    """What one license or notice file says."""

    spdx_id: SpdxId = Field(
        description=f"SPDX id of the text; of the first, where there are several.\n{_TELLTALES}"
    )
    spdx_quote: str | None = Field(description="The words that name the license or grant its permission")
    copyleft: Literal["none", "weak", "strong"] = Field(description=_COPYLEFT)
    copyleft_quote: str | None = Field(description="The words that keep derivative or covered works under it")
    patent_grant: bool = Field(description=_PATENTS)
    patent_quote: str | None = Field(description="The words on patents")
    attribution: Literal["none", "notice", "notice_and_changes"] = Field(description=_ATTRIBUTION)
    attribution_quote: str | None = Field(
        description="The words that demand that the copyright notice be retained or included"
    )


@dag(
    schedule="@weekly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "compliance", "retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["claude", "compliance", "example"],
    doc_md=__doc__,
    params={
        "folder": Param(
            None,
            type=["null", "string"],
            title="Folder",
            description="A site-packages folder to audit. Empty: the packages installed beside this Airflow.",
        ),
        "tier": Param(
            "fast",
            enum=["fast", "balanced", "strong"],
            title="Model tier",
            description="The tier that reads the files; the connection says which model that is.",
        ),
        "limit": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Limit",
            description="The highest number of files to ask about.",
        ),
        "dry_run": Param(
            False,
            type="boolean",
            title="Dry run",
            description="Only show what would be asked, and about what it would cost.",
        ),
    },
)
def license_audit() -> None:
    """Ask about every license file, then compare with the metadata."""

    @task.claude_documents(
        prompt=PROMPT,
        output_type=License,
        output="{{ var.value.get('license_audit_output', '" + str(OUTPUT) + "') }}",
        reading=Reading(text_field="text"),
        model="{{ params.tier }}",
        limit="{{ params.limit }}",
        dry_run="{{ params.dry_run }}",
        max_failed="5%",  # some empty or broken files among hundreds should not fail the audit
        max_in_flight=64,
        request=RequestFields(max_tokens=2048),
    )
    def read_licenses(params: dict[str, Any]) -> list[dict[str, str]]:
        """Return the text of every license file; only the text, so that equal texts are asked about once."""
        search_path = _search_path(params["folder"])
        documents = [
            {"id": document_id, "text": _text(file)} for document_id, file in _license_files(search_path)
        ]
        log.info("%d license files found in %s", len(documents), params["folder"] or sys.prefix)
        return documents

    @task
    def compare(manifest: dict[str, Any]) -> dict[str, Any]:
        """Compare the SPDX ids with what the packages declare, and the quotes with the files."""
        if manifest.get("dry_run"):
            return manifest
        search_path = _search_path(get_current_context()["params"]["folder"])
        files, found, false_quotes = dict(_license_files(search_path)), {}, []
        with ObjectStoragePath(manifest["output"]).open() as rows:
            for row in map(json.loads, rows):
                found.setdefault(row["document_id"].partition("/")[0], set()).add(row["data"]["spdx_id"])
                text = _text(files[row["document_id"]])
                quotes = (quote for field, quote in row["data"].items() if field.endswith("_quote") and quote)
                if not all(_in_one_line(quote) in _in_one_line(text) for quote in quotes):
                    false_quotes.append(row["document_id"])
        declared = {d.name: _declared(d.metadata) for d in _distributions(search_path) if d.name in found}
        agrees = {name: _agrees(found[name], declared.get(name, set())) for name in sorted(found)}
        return {
            "distributions": len(found),
            "matches": sum(agreed is True for agreed in agrees.values()),
            "differs": sum(agreed is False for agreed in agrees.values()),
            "unknown": sum(agreed is None for agreed in agrees.values()),
            "differing": {
                name: {"found": sorted(found[name]), "declared": sorted(declared[name])}
                for name in [name for name, agreed in agrees.items() if agreed is False][:20]
            },
            "false_quotes": len(false_quotes),
            "false_quotes_in": false_quotes[:20],
        }

    compare(read_licenses())


_FILE = re.compile(r"(un)?licen[cs]e|copying|copyright|notice|patents", re.IGNORECASE)
_NO_TEXT = frozenset({".py", ".pyc", ".pyi", ".json", ".html"})
_CLASSIFIERS = {  # trove classifiers name families; these are the ids that one may stand for
    "Academic Free License (AFL)": (),
    "Apache Software License": ("Apache-2.0",),
    "BSD License": ("BSD-2-Clause", "BSD-3-Clause", "0BSD"),
    "GNU Affero General Public License v3": ("AGPL-3.0",),
    "GNU General Public License (GPL)": ("GPL-2.0", "GPL-3.0"),
    "GNU General Public License v2 (GPLv2)": ("GPL-2.0",),
    "GNU General Public License v3 (GPLv3)": ("GPL-3.0",),
    "GNU Lesser General Public License v2 or later (LGPLv2+)": ("LGPL-2.1",),
    "GNU Lesser General Public License v3 (LGPLv3)": ("LGPL-3.0",),
    "GNU Library or Lesser General Public License (LGPL)": ("LGPL-2.1", "LGPL-3.0"),
    "Historical Permission Notice and Disclaimer (HPND)": ("HPND",),
    "ISC License (ISCL)": ("ISC",),
    "MIT License": ("MIT",),
    "MIT No Attribution License (MIT-0)": ("MIT-0",),
    "Mozilla Public License 2.0 (MPL 2.0)": ("MPL-2.0",),
    "Python Software Foundation License": ("PSF-2.0",),
    "The Unlicense (Unlicense)": ("Unlicense",),
    "Zope Public License": ("ZPL-2.1",),
}
_SPELLINGS = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "mit license": "MIT",
    "psf": "PSF-2.0",
}
_OPERATORS = re.compile(r"\s+(?:AND|OR|WITH)\s+|[()]")


def _search_path(folder: str | None) -> list[str]:
    """Return where to look for distributions; a folder that somebody typed must lie below [llm] roots."""
    if not folder:
        return sys.path
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import AirflowFailException

    from airflow_llm_provider.documents.files import OutsideRoots, Roots

    roots = conf.get("llm", "roots", fallback="").split(",")
    try:
        Roots([root.strip() for root in roots if root.strip()]).require(folder, folder)
    except OutsideRoots as error:
        raise AirflowFailException(str(error)) from error
    if not Path(folder).is_dir():
        raise AirflowFailException(f"{folder!r} is no folder: name one that holds *.dist-info, or none.")
    return [folder]


def _distributions(search_path: list[str]) -> list[metadata.Distribution]:
    """Return each distribution once, by name; the first on the path counts, as for an import."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions(path=search_path):
        if distribution.metadata["Name"]:
            found.setdefault(distribution.name, distribution)
    return [found[name] for name in sorted(found)]


def _license_files(search_path: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield (distribution/file name, path) of every license file below the folders of the search path."""
    within = [Path(folder).resolve() for folder in search_path if folder]
    for distribution in _distributions(search_path):
        taken: set[str] = set()
        for file in distribution.files or ():
            if not _FILE.match(file.name) or file.suffix in _NO_TEXT:
                continue
            path = Path(str(distribution.locate_file(file))).resolve()
            # A RECORD may say ../../etc: what it names is read only where the packages are.
            if path.is_file() and any(path.is_relative_to(folder) for folder in within):
                name = file.name if file.name not in taken else file.as_posix()
                taken.add(name)
                yield f"{distribution.name}/{name}", path


def _text(file: Path) -> str:
    raw = file.read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError:  # an author's name in an old encoding
        return raw.decode("latin-1")


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _declared(package: metadata.PackageMetadata) -> set[str]:
    """Return the SPDX ids that a package's metadata names or may mean."""
    expression = package.get("License-Expression") or package.get("License") or ""
    ids = {
        re.sub(r"-(only|or-later)$|\+$", "", part.strip())
        for part in _OPERATORS.split(expression)
        if part.strip()
    }
    known = {_SPELLINGS.get(spdx_id.lower(), spdx_id) for spdx_id in ids} & set(get_args(SpdxId))
    if package.get("License-Expression"):
        return known
    for classifier in package.get_all("Classifier") or ():
        known.update(_CLASSIFIERS.get(classifier.rpartition(" :: ")[2], ()))
    return known


def _agrees(found: set[str], declared: set[str]) -> bool | None:
    """Say whether some license found is one declared; None where one side names none."""
    found = found - {"other"}
    return bool(found & declared) if found and declared else None


license_audit()
