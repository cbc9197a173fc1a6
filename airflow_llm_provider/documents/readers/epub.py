"""Electronic books as the text of their chapters, in reading order."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

from airflow_llm_provider.documents.content import Part, Unreadable, checked
from airflow_llm_provider.documents.readers.html import read_html
from airflow_llm_provider.documents.readers.package import Package
from airflow_llm_provider.options import Reading

_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
_OPF = "{http://www.idpf.org/2007/opf}"
_WHAT = "an EPUB book"


def read_epub(raw: bytes, reading: Reading) -> tuple[Part, ...]:
    """Return the chapters that the book's own list names, one after another; each is read like an HTML page.

    Raises:
        Unreadable: the book is broken, copy-protected or empty.
    """
    package = Package(raw, _WHAT)
    if "META-INF/encryption.xml" in package and "META-INF/rights.xml" in package:
        raise Unreadable("unreadable", f"{_WHAT} that is copy-protected (DRM)")
    rootfile = package.xml("META-INF/container.xml").find(f".//{_CONTAINER}rootfile")
    if rootfile is None:
        raise Unreadable("unreadable", f"{_WHAT} without contents")
    opf = unquote(rootfile.get("full-path") or "")
    root = package.xml(opf)
    items = {item.get("id"): item for item in root.iterfind(f"{_OPF}manifest/{_OPF}item")}
    chapters = []
    for reference in root.iterfind(f"{_OPF}spine/{_OPF}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or "html" not in (item.get("media-type") or ""):
            continue
        name = posixpath.normpath(posixpath.join(posixpath.dirname(opf), unquote(item.get("href") or "")))
        try:
            chapters.append(read_html(package.read(name), reading)[0].data)
        except Unreadable as error:
            if error.reason != "empty":  # a cover is a picture alone
                raise
    return (Part(kind="text", data=checked("\n\n".join(chapters))),)
