"""Office files as zip packages of XML parts."""

from __future__ import annotations

import dataclasses
import io
import posixpath
import re
import zipfile
from typing import Any
from urllib.parse import unquote

from airflow_llm_provider.documents.content import Part, Unreadable, checked
from airflow_llm_provider.documents.readers.image import MAX_IMAGES, image_part, media_type_of

_PICTURE_BYTES = 20_000
"""A smaller picture is a logo or an icon."""
_STRICT = b"http://purl.oclc.org/ooxml/"
_OPENXML = b"http://schemas.openxmlformats.org/"
_USUAL = {
    **{
        name + b"/main": _OPENXML + name + b"/2006/main"
        for name in (b"wordprocessingml", b"spreadsheetml", b"presentationml")
    },
    b"officeDocument/": _OPENXML + b"officeDocument/2006/",
    b"drawingml/": _OPENXML + b"drawingml/2006/",
}
_TEXT_PER_PICTURE = 200
"""With fewer characters per picture, the pictures are what the document is about."""


class Package:
    """The parts of one office file, by their names.

    Attributes:
        raw: the bytes of the file, for libraries that open it themselves.

    Args:
        raw: the file's bytes.
        what: the format with its article, for messages, such as `a Word document`.

    Raises:
        Unreadable: the archive is broken or encrypted.
    """

    def __init__(self, raw: bytes, what: str) -> None:
        self.what = what
        # An OLE file: the container of the old formats, and of files with a password.
        if raw.startswith(b"\xd0\xcf\x11\xe0"):
            raise Unreadable(
                "unreadable", f"{what} that is encrypted, or of the old format. Save it without a password."
            )
        self._open(raw)
        if any(entry.flag_bits & 1 for entry in self._archive.infolist()):
            raise Unreadable("unreadable", f"{what} that is encrypted. Save it without a password.")
        if "_rels/.rels" in self and _STRICT in self.read("_rels/.rels"):
            self._open(self._transitional())

    def _open(self, raw: bytes) -> None:
        self.raw = raw
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(raw))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self.broken(error) from None

    def _transitional(self) -> bytes:
        """Return a "Strict Open XML" file with the usual namespaces, which are the only ones that libraries know."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name in self._archive.namelist():
                part = self.read(name)
                for strict, usual in _USUAL.items():
                    part = part.replace(_STRICT + strict, usual)
                archive.writestr(name, part)
        return out.getvalue()

    def __contains__(self, name: str) -> bool:
        return name in self._archive.NameToInfo

    def broken(self, error: BaseException) -> Unreadable:
        """Return the error of a package that cannot be parsed; a parser's message could repeat the document."""
        return Unreadable("unreadable", f"{self.what} that is broken ({type(error).__name__})")

    def read(self, name: str) -> bytes:
        """Return the bytes of one part; raises Unreadable where it is missing or broken."""
        try:
            return self._archive.read(name)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - zipfile passes on KeyErrors and errors of zlib
            raise self.broken(error) from None

    def xml(self, name: str) -> Any:
        """Return the root element of one part; raises Unreadable where it is missing or broken."""
        return parse_xml(self.read(name), self.what)

    def parts(self, text: str, pictures: str) -> tuple[Part, ...]:
        """Return the text, and the pictures where there is hardly any text beside them: a scan that was pasted.

        Args:
            text: all that the reader found.
            pictures: the folder of the pictures in the package, such as `word/media/`.

        Raises:
            Unreadable: there is neither, or there are more pictures than one request may have.
        """
        entries = [each for each in self._archive.infolist() if each.filename.startswith(pictures)]
        found = [entry.filename for entry in entries if entry.file_size >= _PICTURE_BYTES]
        if not found or len(text) >= _TEXT_PER_PICTURE * len(found):
            return (Part(kind="text", data=checked(text)),)
        if len(found) > MAX_IMAGES:
            raise Unreadable("too_large", f"{self.what} of {len(found)} pictures. Export it as PDF.")
        raws = [self.read(name) for name in sorted(found, key=_by_number)]
        images = [image_part(raw) for raw in raws if media_type_of(raw) is not None]
        others = len(raws) - len(images)
        warnings = (f"pictures_not_sent: {others}",) if others else ()
        if not images:
            return (Part(kind="text", data=checked(text), warnings=warnings),)
        first = [Part(kind="text", data=checked(text))] if text.strip() else []
        return (*first, *images[:-1], dataclasses.replace(images[-1], warnings=warnings))

    def relations(self, name: str) -> dict[str, tuple[str, str]]:
        """Return what an OOXML part refers to: by id, the last word of the relation's type and the part's name.

        Args:
            name: of the part; empty: the package itself.
        """
        folder, _, file = name.rpartition("/")
        rels = posixpath.join(folder, "_rels", f"{file}.rels")
        if rels not in self:
            return {}
        found = {}
        for relation in self.xml(rels):
            if relation.get("TargetMode") != "External":
                target = posixpath.normpath(
                    posixpath.join("/", folder, unquote(relation.get("Target") or ""))
                )
                kind = (relation.get("Type") or "").rpartition("/")[2]
                found[relation.get("Id") or ""] = kind, target.lstrip("/")
        return found


def _by_number(name: str) -> list[str | int]:
    # image2 comes before image10.
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]


def parse_xml(raw: bytes, what: str) -> Any:
    """Return the root element of XML that may have no entities.

    Raises:
        Unreadable: it is broken, or it has entities, which no office program writes.
    """
    from lxml import etree  # type: ignore[import-untyped]

    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(raw, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise Unreadable("unreadable", f"{what} that is broken ({type(error).__name__})") from None
    # An entity is not expanded, so its text would be missing. A DTD that is elsewhere is not loaded.
    dtd = root.getroottree().docinfo.internalDTD
    if next(root.iter(etree.Entity), None) is not None or (dtd is not None and list(dtd.iterentities())):
        raise Unreadable("unreadable", f"{what} with entities, which no office program writes")
    return root
