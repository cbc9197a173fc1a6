"""The table of formats: how each is recognised, and which function reads it, in the sandbox where it parses."""

from __future__ import annotations

import dataclasses
import importlib
import io
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from airflow_llm_provider.documents import sandbox
from airflow_llm_provider.documents.content import Part, Unreadable
from airflow_llm_provider.documents.document import suffix_of
from airflow_llm_provider.documents.readers import custom, image
from airflow_llm_provider.options import Reading, reader_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of format.

    Attributes:
        name: in messages, such as `PDF`.
        reader: `module:function` in this package, imported when the first such file is read; empty: none reads it.
        suffixes: of file names, in lower case, without the dot.
        signature: a pattern for the first bytes; None: only the name tells.
        member: the name of a file that only such a zip archive, or such an OLE file, has in it; None: not a container.
        hint: a pattern for the first bytes that counts where neither signatures nor the name tell; or where the
            name tells of a container and the bytes are none, such as a web page that is named `.xls`.
        extra: the extra of this package that brings the reader's libraries; empty: they are always there.
        cure: what to do with a file that no reader reads.
        is_parsed: whether the bytes are parsed, which is done in the sandbox and nowhere else.
    """

    name: str
    reader: str = ""
    suffixes: frozenset[str] = frozenset()
    signature: re.Pattern[bytes] | None = None
    member: str | None = None
    hint: re.Pattern[bytes] | None = None
    extra: str = ""
    cure: str = ""
    is_parsed: bool = True

    def read(self, raw: bytes, reading: Reading) -> tuple[Part, ...]:
        """Call the reader, here and now; raises Unreadable where there is none, or its libraries are missing."""
        if not self.reader:
            raise Unreadable("unreadable", f"{self.name}: this format is not read. {self.cure}")
        module, _, name = self.reader.partition(":")
        function = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        try:
            return cast("tuple[Part, ...]", function(raw, reading))
        except ModuleNotFoundError:
            if not self.extra:
                raise
            raise Unreadable(
                "unreadable",
                f"{self.name}: its libraries are not installed. "
                f"Run `pip install 'airflow-provider-llm[{self.extra}]'` where the task runs.",
            ) from None


TEXT = Kind(
    name="text",
    reader="text:read_text",
    suffixes=frozenset({"txt", "text", "md", "markdown"}),
    is_parsed=False,
)
MAIL = Kind(
    name="mail",
    reader="mail:read_eml",
    suffixes=frozenset({"eml", "mht", "mhtml"}),
    hint=re.compile(rb"(Received|Return-Path|Delivered-To|MIME-Version|Message-ID): ", re.IGNORECASE),
)
OUTLOOK_ITEM = Kind(
    name="Outlook item (.msg)",
    reader="mail:read_msg",
    suffixes=frozenset({"msg"}),
    member="__properties_version1.0",
    extra="office",
)
ARCHIVE = Kind(
    name="archive",
    suffixes=frozenset({"zip", "gz", "tar", "tgz", "bz2", "tbz2", "xz", "txz"}),
    signature=re.compile(rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ\0|.{257}ustar", re.DOTALL),
    cure="It is broken, has a password, or lacks its usual ending, or one document is wanted here. Unpack it.",
)
_OPEN_DOCUMENT = rb"PK\x03\x04.{26}mimetypeapplication/vnd\.oasis\.opendocument\."
_AS_PDF = "Export it as PDF."
KINDS = (
    TEXT,
    Kind(
        name="image",
        reader="image:read_image",
        suffixes=frozenset({"png", "jpg", "jpeg", "gif", "webp"}),
        signature=image.SIGNATURE,
        is_parsed=False,
    ),
    Kind(
        name="TIFF or BMP image",
        reader="image:read_bitmap",
        suffixes=frozenset({"tif", "tiff", "bmp"}),
        signature=re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+|BM.{4}\0\0\0\0", re.DOTALL),
        extra="office",
    ),
    Kind(
        name="PDF",
        reader="pdf:read_pdf",
        suffixes=frozenset({"pdf"}),
        signature=re.compile(rb"%PDF-"),
    ),
    Kind(
        name="Word document",
        reader="docx:read_docx",
        suffixes=frozenset({"docx", "docm", "dotx"}),
        member="word/document.xml",
    ),
    Kind(
        name="Excel workbook (.xlsx)",
        reader="spreadsheet:read_xlsx",
        suffixes=frozenset({"xlsx", "xlsm", "xltx"}),
        member="xl/workbook.xml",
        extra="office",
    ),
    Kind(
        name="PowerPoint presentation",
        reader="pptx:read_pptx",
        suffixes=frozenset({"pptx", "pptm", "ppsx", "potx"}),
        member="ppt/presentation.xml",
        extra="office",
    ),
    Kind(
        name="OpenDocument text",
        reader="odf:read_odt",
        suffixes=frozenset({"odt", "ott"}),
        signature=re.compile(_OPEN_DOCUMENT + rb"text", re.DOTALL),
    ),
    Kind(
        name="OpenDocument spreadsheet",
        reader="odf:read_ods",
        suffixes=frozenset({"ods", "ots"}),
        signature=re.compile(_OPEN_DOCUMENT + rb"spreadsheet", re.DOTALL),
    ),
    Kind(
        name="OpenDocument presentation",
        reader="odf:read_odp",
        suffixes=frozenset({"odp", "otp"}),
        signature=re.compile(_OPEN_DOCUMENT + rb"presentation", re.DOTALL),
    ),
    Kind(
        name="EPUB book",
        reader="epub:read_epub",
        suffixes=frozenset({"epub"}),
        member="META-INF/container.xml",
    ),
    Kind(
        name="RTF document",
        reader="rtf:read_rtf",
        suffixes=frozenset({"rtf"}),
        signature=re.compile(rb"\s*\{\\rtf"),
    ),
    MAIL,
    OUTLOOK_ITEM,
    Kind(
        name="HTML",
        reader="html:read_html",
        suffixes=frozenset({"html", "htm", "xhtml"}),
        hint=re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|table|head|body)\b", re.IGNORECASE),
    ),
    Kind(
        name="XML",
        reader="text:read_xml",
        suffixes=frozenset({"xml", "svg"}),
        hint=re.compile(rb"(\xef\xbb\xbf)?<\?xml\s|<\0\?\0|\0<\0\?|\xff\xfe<\0\?\0|\xfe\xff\0<\0\?"),
        is_parsed=False,
    ),
    Kind(name="JSON", reader="text:read_json", suffixes=frozenset({"json"}), is_parsed=False),
    ARCHIVE,
    # What follows is recognised so that its dead letter can say what to do.
    Kind(
        name="old Word document (.doc)",
        suffixes=frozenset({"doc", "dot"}),
        member="WordDocument",
        cure="Save it as .docx.",
    ),
    Kind(
        name="old PowerPoint presentation (.ppt)",
        suffixes=frozenset({"ppt", "pps", "pot"}),
        member="PowerPoint Document",
        cure="Save it as .pptx.",
    ),
    Kind(
        name="office file with a password",
        member="EncryptedPackage",
        cure="Save it without a password.",
    ),
    # After all others in OLE files, for any of them may have a workbook within it.
    Kind(
        name="Excel workbook (.xls)",
        reader="spreadsheet:read_xls",
        suffixes=frozenset({"xls", "xlt"}),
        member="Workbook",
        extra="office",
    ),
    Kind(
        name="binary Excel workbook (.xlsb)",
        suffixes=frozenset({"xlsb"}),
        member="xl/workbook.bin",
        cure="Save it as .xlsx.",
    ),
    Kind(
        name="document of Pages, Numbers or Keynote",
        suffixes=frozenset({"pages", "numbers", "key"}),
        member="Index/Document.iwa",
        cure=_AS_PDF,
    ),
    Kind(
        name="file of Visio, Publisher, Project, OneNote or WordPerfect",
        suffixes=frozenset({"vsd", "vsdx", "pub", "mpp", "one", "wpd", "wps", "odg"}),
        cure=_AS_PDF,
    ),
    Kind(
        name="PostScript, XPS or DjVu document",
        suffixes=frozenset({"ps", "eps", "xps", "oxps", "djvu"}),
        signature=re.compile(rb"%!PS|AT&TFORM"),
        cure=_AS_PDF,
    ),
    Kind(
        name="HEIC, AVIF or JPEG 2000 image",
        suffixes=frozenset({"heic", "heif", "avif", "jp2", "jpx"}),
        signature=re.compile(rb".{4}ftyp(heic|heix|mif1|msf1|avif)|\0\0\0\x0cjP  ", re.DOTALL),
        cure="Convert it to JPEG.",
    ),
    Kind(
        name="Photoshop image, icon or camera file",
        suffixes=frozenset({"psd", "ico", "cr2", "nef", "dng"}),
        signature=re.compile(rb"8BPS"),
        cure="Convert it to PNG or JPEG.",
    ),
    Kind(
        name="7z or RAR archive",
        suffixes=frozenset({"7z", "rar"}),
        signature=re.compile(rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07"),
        cure="Pack its files as .zip.",
    ),
    Kind(
        name="encrypted mail (S/MIME) or PGP file",
        suffixes=frozenset({"p7m", "pgp", "gpg"}),
        signature=re.compile(rb"-----BEGIN PGP MESSAGE"),
        cure="Decrypt it.",
    ),
    Kind(
        name="Outlook data file or mailbox",
        suffixes=frozenset({"pst", "ost", "mbox"}),
        signature=re.compile(rb"!BDN"),
        cure="Export its mails as .eml.",
    ),
    Kind(
        name="Parquet file",
        suffixes=frozenset({"parquet"}),
        signature=re.compile(rb"PAR1"),
        cure="Give its rows to documents=, or write them as .jsonl.",
    ),
    # Named only where the author names the file: a folder counts what it has skipped.
    Kind(
        name="audio or video file",
        signature=re.compile(
            rb"ID3|OggS|fLaC|RIFF.{4}(WAVE|AVI )|.{4}ftyp(isom|iso2|mp4|M4|qt|avc1|3gp)|\x1aE\xdf\xa3",
            re.DOTALL,
        ),
        cure="Give its text.",
    ),
    Kind(
        name="program or database file",
        signature=re.compile(rb"\x7fELF|MZ.{58}|SQLite format 3\0|\xca\xfe\xba\xbe", re.DOTALL),
        cure="Leave it out.",
    ),
)
SUFFIXES = frozenset(suffix for kind in KINDS for suffix in kind.suffixes)
"""The suffixes of files that are taken from a folder; some kinds are only recognised, for a dead letter that helps."""

_ZIP = b"PK\x03\x04"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def read_parts(raw: bytes, name: str, reading: Reading) -> tuple[Part, ...]:
    """Return the parts of a file: recognised by its first bytes, else by its name, and parsed in the sandbox.

    Args:
        raw: the file's bytes.
        name: the file's name; only its suffix counts.
        reading: how it is read.

    Raises:
        Unreadable: the file cannot be read, and why.
        OSError: the sandbox cannot be started.
    """
    kind, own = _kind_of(raw, suffix_of(name)), custom.reader_of(name, reading)
    # What is in a zip archive is looked up in the sandbox: its list of files may be made to fill the memory.
    if own is None and not kind.is_parsed and not raw.startswith(_ZIP):
        return kind.read(raw, reading)
    # An author's module is found where the task finds it: Airflow has put the folders of DAGs and plugins there.
    path = [folder for folder in sys.path if folder] if own or reading.readers else []
    arguments = {"name": name, "reading": as_json(reading), "path": path}
    found = sandbox.run(f"{__name__}:parse", raw, arguments, custom.LIMITS if own else None)
    return tuple(map(Part.of, found))


def parse(raw: bytes, name: str, reading: dict[str, Any], path: Sequence[str] = ()) -> tuple[Part, ...]:
    """Return the parts of a file that has to be parsed: what the child process of the sandbox calls.

    Args:
        raw: the file's bytes.
        name: the file's name.
        reading: as `as_json` made it.
        path: where modules are found; empty: where the child finds them.
    """
    sys.path[:] = path or sys.path
    return read_here(raw, name, Reading(**reading))


def read_here(raw: bytes, name: str, reading: Reading) -> tuple[Part, ...]:
    """Return the parts of a file, read in this process: for what is within a file that the sandbox reads."""
    if (own := custom.reader_of(name, reading)) is not None:
        return custom.read(own, raw, name)
    suffix = suffix_of(name)
    kind = _kind_of_zip(raw, suffix) if raw.startswith(_ZIP) else _kind_of(raw, suffix)
    return kind.read(raw, reading)


def _kind_of(raw: bytes, suffix: str) -> Kind:
    """Return the kind that the first bytes show, else the one of the suffix, else the one they hint at, else text."""
    shown = next((kind for kind in KINDS if kind.signature is not None and kind.signature.match(raw)), None)
    if shown is None and raw.startswith(_OLE):
        inside = [kind for kind in KINDS if kind.member and kind.member.encode("utf-16-le") in raw]
        shown = next((kind for kind in inside if suffix in kind.suffixes), next(iter(inside), None))
    if shown is not None:
        return shown
    named = next((kind for kind in KINDS if suffix in kind.suffixes), None)
    if named is not None and (named.member is None or raw.startswith((_ZIP, _OLE))):
        return named
    hinted = next((kind for kind in KINDS if kind.hint is not None and kind.hint.match(raw)), None)
    return hinted or named or TEXT


def as_json(reading: Reading) -> dict[str, Any]:
    """Return `reading` as plain JSON data, from which the child process makes it again."""
    readers = {key: reader_name(reader) for key, reader in reading.readers.items()}
    return dataclasses.asdict(dataclasses.replace(reading, readers=readers))


def _kind_of_zip(raw: bytes, suffix: str) -> Kind:
    """Return the kind whose member the archive has; one that cannot be opened is told by its suffix."""
    named = _kind_of(raw, suffix)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as opened:
            shown = next((kind for kind in KINDS if kind.member in opened.NameToInfo), named)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return named
    return ARCHIVE if shown is TEXT else shown
