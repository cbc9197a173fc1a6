"""Rich Text Format as the text that a reader of the printout sees."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field, replace

from airflow_llm_provider.documents.content import Part, Unreadable, checked
from airflow_llm_provider.options import Reading

_TOKEN = re.compile(
    rb"(?P<open>\{)|(?P<close>\})"
    rb"|\\(?:'(?P<hex>[0-9a-fA-F]{2})|(?P<word>[a-zA-Z]+)(?P<number>-?\d+)? ?|(?P<symbol>[^a-zA-Z]))"
    rb"|(?P<text>[^\\{}\r\n]+)|[\r\n]+",
    re.DOTALL,
)
# Groups that hold no text of the page. Any group that begins with `\*` and is not known is left out as well.
_NO_TEXT = frozenset(
    {
        *(
            "fonttbl",
            "colortbl",
            "stylesheet",
            "info",
            "pict",
            "themedata",
            "colorschememapping",
            "datastore",
        ),
        *(
            "latentstyles",
            "listtable",
            "listoverridetable",
            "rsidtbl",
            "xmlnstbl",
            "generator",
            "filetbl",
            "revtbl",
        ),
        *(
            "fldinst",
            "objdata",
            "nonshppict",
            "annotation",
            "atnid",
            "atnauthor",
            "atnref",
            "atndate",
            "atnicn",
        ),
        *(
            "bkmkstart",
            "bkmkend",
            "private",
            "shprslt",
            "xe",
            "tc",
            "mmathPr",
            "userprops",
            "wgrffmtfilter",
            "sp",
        ),
        *(
            "ftnsep",
            "ftnsepc",
            "ftncn",
            "aftnsep",
            "aftnsepc",
            "aftncn",
            "listname",
            "listlevel",
            "background",
        ),
    }
)
# Groups beginning with `\*` whose text is on the page: text boxes, and what a list shows before its items.
_STARRED_TEXT = frozenset({"shpinst", "shptxt", "listtext", "footnote"})
_LITERAL = {
    "par": "\n",
    "line": "\n",
    "row": "\n",
    "sect": "\n",
    "page": "\n",
    "softline": "\n",
    "tab": "\t",
    "cell": "\t",
    "nestcell": "\t",
    "nestrow": "\n",
    "emdash": "—",
    "endash": "\N{EN DASH}",
    "lquote": "\N{LEFT SINGLE QUOTATION MARK}",
    "rquote": "\N{RIGHT SINGLE QUOTATION MARK}",
    "ldblquote": "“",
    "rdblquote": "”",
    "bullet": "•",
    "emspace": " ",
    "enspace": " ",
    "qmspace": " ",
}
_SYMBOLS = {
    b"~": "\N{NO-BREAK SPACE}",
    b"_": "-",
    b"\n": "\n",
    b"\r": "\n",
    b"{": "{",
    b"}": "}",
    b"\\": "\\",
}
_HEADERS = frozenset({"header", "headerl", "headerr", "headerf"})
_FOOTERS = frozenset({"footer", "footerl", "footerr", "footerf"})
_CHARSETS = {
    77: "mac_roman",
    128: "cp932",
    129: "cp949",
    130: "johab",
    134: "gbk",
    136: "big5",
    161: "cp1253",
    162: "cp1254",
    163: "cp1258",
    177: "cp1255",
    178: "cp1256",
    186: "cp1257",
    204: "cp1251",
    222: "cp874",
    238: "cp1250",
    254: "cp437",
    255: "cp850",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    r"""What holds within the current group.

    Attributes:
        into: where its text is collected: `body`, `header`, `footer`, `notes`, `fonts`; None: nowhere.
        is_hidden: hidden text, or text that a tracked change has removed.
        is_in_table: in a cell, whose paragraphs stand in one line.
        encoding: of bytes, by the current font.
        fallback_characters: how many characters follow a `\u` for programs that cannot show it.
    """

    into: str | None = "body"
    is_hidden: bool = False
    is_in_table: bool = False
    encoding: str = "cp1252"
    fallback_characters: int = 1


@dataclass(kw_only=True)
class _Document:
    """One document, while its tokens are read in order."""

    state: _State = field(default_factory=_State)
    texts: dict[str, list[str]] = field(
        default_factory=lambda: {"body": [], "header": [], "footer": [], "notes": []}
    )
    encodings: dict[int, str] = field(default_factory=dict)  # by the number of the font
    default_encoding: str = "cp1252"
    default_font: int = 0
    notes: int = 0
    _outer: list[_State] = field(default_factory=list)
    _pending: bytearray = field(
        default_factory=bytearray
    )  # bytes of one text, which one character may need several of
    _skip: int = 0
    _font: int = 0
    _starred: bool = False

    def read(self, raw: bytes) -> None:
        """Read all tokens of the file."""
        position = 0
        while position < len(raw):
            token = _TOKEN.match(raw, position)
            if token is None:  # a backslash at the end
                break
            position = token.end()
            kind = token.lastgroup
            if kind is None:  # the end of a line in the file is no end of a line in the text
                continue
            if kind in ("hex", "text"):
                self._bytes(bytes.fromhex(token["hex"].decode()) if kind == "hex" else token["text"])
                continue
            self._flush()
            if kind == "open":
                self._outer.append(self.state)
            elif kind == "close":
                if self._outer:
                    self.state = self._outer.pop()
                self._skip, self._starred = 0, False
            elif kind == "symbol":
                self._symbol(token["symbol"])
            else:  # a word, and perhaps its number
                number = int(token["number"][:10]) if token["number"] else None
                if token["word"] == b"bin":
                    position += max(number or 0, 0)  # so many bytes of binary data follow
                else:
                    self._word(token["word"].decode(), number)
        self._flush()

    def _bytes(self, data: bytes) -> None:
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._starred = False
        self._pending += data

    def _flush(self) -> None:
        if self._pending:
            text, self._pending = bytes(self._pending), bytearray()
            if self.state.into is not None:
                self._add(text.decode(self.state.encoding, errors="replace"))

    def _add(self, text: str) -> None:
        if self.state.into is not None and not self.state.is_hidden:
            self.texts[self.state.into].append(text)

    def _symbol(self, symbol: bytes) -> None:
        if symbol == b"*":
            self._starred = True
        elif self._skip:
            self._skip -= 1
        elif symbol in _SYMBOLS:
            self._add(_SYMBOLS[symbol])

    def _word(self, word: str, number: int | None) -> None:
        starred, self._starred = self._starred, False
        if word in _NO_TEXT or (starred and word not in _STARRED_TEXT):
            # The table of fonts has no text, and says in which encoding each font is.
            self.state = replace(self.state, into=None)
        elif word in _HEADERS or word in _FOOTERS:
            self.state = replace(self.state, into="header" if word in _HEADERS else "footer")
            self._add("\n")
        elif word == "footnote":
            self._note()
        elif word in ("v", "deleted"):
            self.state = replace(self.state, is_hidden=number != 0)
        elif word == "plain":
            encoding = self.encodings.get(self.default_font, self.default_encoding)
            self.state = replace(self.state, is_hidden=False, encoding=encoding)
        elif word in ("intbl", "pard"):
            self.state = replace(self.state, is_in_table=word == "intbl")
        elif word == "shptxt":
            self._add("\n")
        elif word == "par" and self.state.is_in_table:
            self._add(" ")
        elif word == "u" and number is not None:
            self._add_unicode(number)
        elif word == "uc" and number is not None:
            self.state = replace(self.state, fallback_characters=max(number, 0))
        elif word in _LITERAL:
            self._add(_LITERAL[word])
        elif number is not None:
            self._set(word, number)

    def _set(self, word: str, number: int) -> None:
        if word == "ansicpg" and (known := _encoding(f"cp{number}")):
            self.default_encoding = known
            self.state = replace(self.state, encoding=known)
        elif word == "deff":
            self.default_font = number
        elif word == "f":
            self._font = number
            self.state = replace(self.state, encoding=self.encodings.get(number, self.default_encoding))
        elif word == "fcharset" and number in _CHARSETS:
            self.encodings[self._font] = _CHARSETS[number]
        elif word == "cpg" and (known := _encoding(f"cp{number}")):
            self.encodings[self._font] = known

    def _note(self) -> None:
        if self.state.into is None or self.state.is_hidden:
            self.state = replace(self.state, into=None)
            return
        self.notes += 1
        self._add(f"[{self.notes}]")
        self.state = replace(self.state, into="notes")
        self._add(f"\n[{self.notes}] ")

    def _add_unicode(self, number: int) -> None:
        # Numbers above 32,767 are written as negative ones; two halves of a pair are joined at the end.
        self._add(chr(number % 0x10000))
        self._skip = self.state.fallback_characters


def read_rtf(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return an RTF document as one text: page header, body, page footer, notes.

    The cells of a table row are separated by tabs. Hidden and removed text, comments and pictures are left out.

    Raises:
        Unreadable: it is not RTF, broken or empty.
    """
    if not raw.lstrip().startswith(b"{\\rtf"):
        raise Unreadable("unreadable", "not an RTF document, although its name ends like one")
    document = _Document()
    document.read(raw)
    return (Part(kind="text", data=checked(text_of(document.texts))),)


def text_of(texts: dict[str, list[str]]) -> str:
    """Return the collected texts in reading order, with the halves of surrogate pairs joined."""
    whole = []
    for name in ("header", "body", "footer", "notes"):
        lines = "".join(texts[name]).split("\n")
        whole.append("\n".join(line.rstrip("\t ") for line in lines).strip("\n"))
    joined = "\n".join(filter(None, whole))
    return joined.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _encoding(name: str) -> str | None:
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "utf-8" if name == "cp65001" else None
