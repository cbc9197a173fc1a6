"""Writes small office files, mails and books whose content the test knows."""

# ruff: noqa: E501 - a line of XML is one line

from __future__ import annotations

import datetime as dt
import email.message
import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache

W_NAMESPACES = (
    'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
    'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships" '
    'xmlns:v="urn:schemas-microsoft-com:vml" '
    'xmlns:c="http://schemas.openxmlformats.org/drawingml/2006/chart" '
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
    'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
)
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_ODF = " ".join(
    f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
    for prefix, name in {
        **{name: name for name in ("office", "text", "table", "style", "presentation")},
        "draw": "drawing",
        "svg": "svg-compatible",
    }.items()
)


def zipped(files: Mapping[str, str | bytes], *, stored: Sequence[str] = ()) -> bytes:
    """A zip archive of these files; those in `stored` are not compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            how = zipfile.ZIP_STORED if name in stored else zipfile.ZIP_DEFLATED
            archive.writestr(name, content, compress_type=how)
    return out.getvalue()


def docx(body: str, **parts: str) -> bytes:
    """A Word document of the XML of its body; `parts` are its other parts, such as `header1`, `numbering`, `styles`."""
    kinds = {name: name.rstrip("0123456789") for name in parts}
    relations = "".join(
        f'<Relationship Id="{name}" Type="{_RELATIONS}/{kind}" Target="{name}.xml"/>'
        for name, kind in kinds.items()
    )
    roots = {"header": "hdr", "footer": "ftr", "chart": "chartSpace"}
    files = {
        "[Content_Types].xml": _content_types(kinds),
        "_rels/.rels": _rels(
            f'<Relationship Id="r" Type="{_RELATIONS}/officeDocument" Target="word/document.xml"/>'
        ),
        "word/_rels/document.xml.rels": _rels(relations),
        "word/document.xml": f"<w:document {W_NAMESPACES}><w:body>{body}</w:body></w:document>",
    }
    for name, xml in parts.items():
        root = roots.get(kinds[name], kinds[name])
        root = f"c:{root}" if root == "chartSpace" else f"w:{root}"
        files[f"word/{name}.xml"] = f"<{root} {W_NAMESPACES}>{xml}</{root}>"
    return zipped(files)


def _content_types(kinds: Mapping[str, str]) -> str:
    word = "application/vnd.openxmlformats-officedocument.wordprocessingml"
    parts = {"document": f"{word}.document.main+xml"} | {
        name: f"{word}.{kind}+xml" for name, kind in kinds.items()
    }
    return (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        + "".join(
            f'<Override PartName="/word/{name}.xml" ContentType="{kind}"/>' for name, kind in parts.items()
        )
        + "</Types>"
    )


def _rels(relations: str) -> str:
    namespace = "http://schemas.openxmlformats.org/package/2006/relationships"
    return f'<Relationships xmlns="{namespace}">{relations}</Relationships>'


def p(text: str, properties: str = "", run: str = "") -> str:
    """One paragraph of a Word document."""
    return f"<w:p><w:pPr>{properties}</w:pPr>{r(text, run)}</w:p>"


def r(text: str, properties: str = "") -> str:
    """One run of a Word document."""
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


@cache
def xlsx() -> bytes:
    """An Excel workbook with a date, a percentage, a currency, a formula, merged cells and a hidden sheet."""
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Umsätze"
    sheet.append(["Item", "Day", "Share", "Amount", "At", "Zip"])
    sheet.append(
        ["Bolt", dt.date(2026, 3, 4), 0.155, 1234.5, dt.datetime.fromisoformat("2026-03-04 13:45"), 1067]
    )
    for cell, code in {"C2": "0.0%", "D2": '#,##0.00 "€"', "E2": "yyyy-mm-dd hh:mm", "F2": "00000"}.items():
        sheet[cell].number_format = code
    sheet["A3"], sheet["D3"], sheet["E3"] = "Total", "=SUM(D2:D2)", "=1+1"
    sheet.merge_cells("A3:C3")
    hidden = book.create_sheet("Secret")
    hidden["A1"] = "hidden cell"
    hidden.sheet_state = "hidden"
    out = io.BytesIO()
    book.save(out)
    # openpyxl computes nothing. Excel stores the value of a formula beside it.
    return replaced(out.getvalue(), b"<f>SUM(D2:D2)</f><v></v>", b"<f>SUM(D2:D2)</f><v>4321.75</v>")


def replaced(archive: bytes, old: bytes, new: bytes) -> bytes:
    """The archive with one text of its files changed."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    assert any(old in content for content in files.values())
    return zipped({name: content.replace(old, new) for name, content in files.items()})


@cache
def xls() -> bytes:
    """The same as `xlsx`, in the old format, which stores the value of a formula only where Excel computed it."""
    import xlwt

    def style(code: str) -> xlwt.XFStyle:
        made = xlwt.XFStyle()
        made.num_format_str = code
        return made

    book = xlwt.Workbook()
    sheet = book.add_sheet("Umsätze")
    for column, text in enumerate(["Item", "Day", "Share", "Amount", "Zip", "Sure"]):
        sheet.write(0, column, text)
    sheet.write(1, 0, "Bolt")
    sheet.write(1, 1, dt.date(2026, 3, 4), style("DD.MM.YYYY"))
    sheet.write(1, 2, 0.155, style("0.0%"))
    sheet.write(1, 3, 1234.5, style('#,##0.00 "€"'))
    sheet.write(1, 4, 1067, style("00000"))
    sheet.write(1, 5, True)
    hidden = book.add_sheet("Secret")
    hidden.write(0, 0, "hidden cell")
    hidden.visibility = 1
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def odf(kind: str, body: str, *, automatic: str = "", styles: str = "") -> bytes:
    """An OpenDocument file of the XML of its body: `text`, `spreadsheet` or `presentation`."""
    content = (
        f"<office:document-content {_ODF}><office:automatic-styles>{automatic}</office:automatic-styles>"
        f"<office:body><office:{kind}>{body}</office:{kind}></office:body></office:document-content>"
    )
    files = {
        "mimetype": f"application/vnd.oasis.opendocument.{kind}",
        "content.xml": content,
        "styles.xml": f"<office:document-styles {_ODF}>{styles}</office:document-styles>",
        "META-INF/manifest.xml": '<manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">'
        f'<manifest:file-entry manifest:full-path="/" manifest:media-type="application/vnd.oasis.opendocument.{kind}"/>'
        '<manifest:file-entry manifest:full-path="content.xml" manifest:media-type="text/xml"/></manifest:manifest>',
    }
    return zipped(files, stored=("mimetype",))


@cache
def ods() -> bytes:
    """A spreadsheet with a date, a percentage, repeated cells and rows, a comment and a hidden sheet."""

    def cell(text: str, more: str = "") -> str:
        return (
            f'<table:table-cell office:value-type="string" {more}><text:p>{text}</text:p></table:table-cell>'
        )

    rest = '<table:table-row table:number-rows-repeated="1048576"><table:table-cell table:number-columns-repeated="16384"/></table:table-row>'
    note = "<table:table-cell office:value-type='percentage' office:value='0.155'><office:annotation><text:p>a comment</text:p></office:annotation><text:p>15.5%</text:p></table:table-cell>"
    return odf(
        "spreadsheet",
        '<table:table table:name="Umsätze">'
        f"<table:table-header-rows><table:table-row>{cell('Item')}{cell('Day')}{cell('Share')}</table:table-row></table:table-header-rows>"
        f'<table:table-row table:number-rows-repeated="2">{cell("Bolt")}{cell("2026-03-04")}{note}</table:table-row>'
        f"<table:table-row>{cell('same', 'table:number-columns-repeated=&quot;2&quot;'.replace('&quot;', chr(34)))}</table:table-row>"
        f"{rest}</table:table>"
        f'<table:table table:name="Secret" table:style-name="h"><table:table-row>{cell("hidden cell")}</table:table-row></table:table>',
        automatic='<style:style style:name="h" style:family="table"><style:table-properties table:display="false"/></style:style>',
    )


@cache
def odt() -> bytes:
    """A text with a heading, a numbered list, a table, a note, a header, hidden text and a comment."""
    level = '<text:list-level-style-number text:level="{}" style:num-format="{}" style:num-suffix="{}" {}/>'
    return odf(
        "text",
        "<text:tracked-changes><text:changed-region><text:deletion><text:p>removed text</text:p></text:deletion></text:changed-region></text:tracked-changes>"
        '<text:h text:outline-level="1">Scope</text:h>'
        '<text:p>Costs<text:s text:c="2"/>10.50\n   EUR<text:note text:note-class="footnote"><text:note-citation>1</text:note-citation>'
        "<text:note-body><text:p>the footnote</text:p></text:note-body></text:note>."
        '<office:annotation><text:p>a comment</text:p></office:annotation><text:span text:style-name="gone">hidden text</text:span></text:p>'
        '<text:list text:style-name="L"><text:list-item><text:p>first</text:p>'
        "<text:list><text:list-item><text:p>deeper</text:p></text:list-item></text:list></text:list-item>"
        "<text:list-item><text:p>second</text:p></text:list-item></text:list>"
        "<table:table><table:table-row><table:table-cell><text:p>A1</text:p></table:table-cell><table:table-cell><text:p>B1</text:p></table:table-cell></table:table-row></table:table>"
        "<text:p><draw:frame><draw:text-box><text:p>in a box</text:p></draw:text-box></draw:frame></text:p>",
        automatic='<style:style style:name="gone" style:family="text"><style:text-properties text:display="none"/></style:style>'
        f'<text:list-style style:name="L">{level.format(1, "1", ".", "")}{level.format(2, "a", ")", "")}</text:list-style>',
        styles='<office:styles><text:outline-style><text:outline-level-style text:level="1" style:num-format="I" style:num-suffix="."/></text:outline-style></office:styles>'
        "<office:master-styles><style:master-page><style:header><text:p>Letterhead</text:p></style:header><style:footer><text:p>Page footer</text:p></style:footer></style:master-page></office:master-styles>",
    )


@cache
def odp() -> bytes:
    """A presentation of two slides, with notes; the second is hidden."""
    box = "<draw:frame><draw:text-box><text:p>{}</text:p></draw:text-box></draw:frame>"
    return odf(
        "presentation",
        f"<draw:page>{box.format('first slide')}<presentation:notes>{box.format('what to say')}</presentation:notes></draw:page>"
        f'<draw:page draw:style-name="h">{box.format("second slide")}</draw:page>',
        automatic='<style:style style:name="h" style:family="drawing-page"><style:drawing-page-properties presentation:visibility="hidden"/></style:style>',
    )


@cache
def pptx() -> bytes:
    """Three slides, shown in another order than they were made, with a table, a group, a chart and notes."""
    from pptx import Presentation
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE
    from pptx.util import Inches

    shown = Presentation()
    place = (Inches(1), Inches(2), Inches(4), Inches(2))
    for number in (1, 2, 3):
        slide = shown.slides.add_slide(shown.slide_layouts[5])
        slide.shapes.title.text = f"Title {number}"
        if number == 1:
            table = slide.shapes.add_table(1, 2, *place).table
            table.cell(0, 0).text, table.cell(0, 1).text = "left cell", "right cell"
        if number == 2:
            group = slide.shapes.add_group_shape()
            group.shapes.add_textbox(*place).text_frame.text = "in a group"
            slide._element.set("show", "0")
        if number == 3:
            data = CategoryChartData()
            data.categories = ["Q1", "Q2"]
            data.add_series("Sales", (10.5, 20))
            slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, *place, data)
        slide.notes_slide.notes_text_frame.text = f"note {number}"
    order = shown.slides._sldIdLst
    order.insert(0, order[-1])
    out = io.BytesIO()
    shown.save(out)
    return out.getvalue()


def eml(attachments: Mapping[str, bytes] | None = None) -> bytes:
    """A mail with its text twice, as plain text and as HTML."""
    mail = email.message.EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "Ada <ada@example.org>", "bob@example.org", "Größe"
    mail["Date"] = "Tue, 03 Mar 2026 10:00:00 +0100"
    mail.set_content("The plain text costs 10.50 €.\n", cte="base64")
    mail.add_alternative("<p>The <b>HTML text</b> costs 10.50 €.</p>", subtype="html")
    for name, raw in (attachments or {}).items():
        mail.add_attachment(raw, maintype="application", subtype="octet-stream", filename=name)
    return bytes(mail)


RTF = rb"""{\rtf1\ansi\ansicpg1252\deff0{\fonttbl{\f0 Arial;}{\f1\fcharset204 Arial Cyr;}}{\colortbl;\red0;}
{\info{\title In no print}}{\header Letterhead\par}{\footer Page footer\par}
\f0 Caf\'e9 \u8364? costs 10.5{\b 0}\par {\v hidden text}{\deleted removed text}{\f1 \'cf\'f0\'e8}\par
{\listtext 1.\tab}first\par
\trowd\cellx1000\cellx2000\intbl A1\par line\cell B1\cell\row\pard after{\footnote the footnote}\par
{\*\generator X;}{\pict\pngblip\bin4 }{{}}}"""


@cache
def epub() -> bytes:
    """A book of two chapters, of which the file that was added last is the first; its name is escaped."""
    page = '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>t</title></head><body><p>{}</p></body></html>'
    return zipped(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
            "OEBPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
            '<item id="two" href="two.xhtml" media-type="application/xhtml+xml"/><item id="one" href="chapter%20one.xhtml" media-type="application/xhtml+xml"/>'
            '</manifest><spine><itemref idref="one"/><itemref idref="two"/></spine></package>',
            "OEBPS/two.xhtml": page.format("the second chapter"),
            "OEBPS/chapter one.xhtml": page.format("the first chapter"),
        },
        stored=("mimetype",),
    )


def picture(kind: str, pages: int = 1) -> bytes:
    """An image of some pages as Pillow writes it."""
    from PIL import Image

    first, *more = [Image.new("RGB", (40, 30), (page, 0, 0)) for page in range(pages)]
    out = io.BytesIO()
    first.save(out, kind, **({"save_all": True, "append_images": more} if more else {}))
    return out.getvalue()


def msg(
    subject: str,
    body: str,
    attachments: Mapping[str, bytes] | None = None,
    *,
    html: str = "",
    rtf: bytes = b"",
) -> bytes:
    """An Outlook item, as [MS-OXMSG] lays it out: a sender, a date, a text, attachments."""
    texts = {0x0037: subject, 0x0C1A: "Ada", 0x0C1F: "ada@example.org", 0x0E04: "Bob", 0x1000: body}
    streams = {
        f"__substg1.0_{number:04X}001F": text.encode("utf-16-le") for number, text in texts.items() if text
    }
    values = [
        struct.pack("<HHIQ", 0x001F, number, 6, len(text) * 2 + 2) for number, text in texts.items() if text
    ]
    values.append(struct.pack("<HHIQ", 0x0003, 0x340D, 6, 0x00040000))  # texts are UTF-16
    values.append(struct.pack("<HHIQ", 0x0003, 0x3FDE, 6, 65001))  # the HTML is UTF-8
    submitted = dt.datetime(2026, 3, 3, 9, tzinfo=dt.UTC) - dt.datetime(1601, 1, 1, tzinfo=dt.UTC)
    values.append(struct.pack("<HHIQ", 0x0040, 0x0039, 6, int(submitted.total_seconds()) * 10_000_000))
    for number, raw in ((0x1013, html.encode()), (0x1009, rtf)):
        if raw:
            streams[f"__substg1.0_{number:04X}0102"] = raw
            values.append(struct.pack("<HHIQ", 0x0102, number, 6, len(raw)))
    files = list((attachments or {}).items())
    streams["__properties_version1.0"] = struct.pack("<8x4I8x", 0, len(files), 0, len(files)) + b"".join(
        values
    )
    for index, (name, raw) in enumerate(files):
        folder = f"__attach_version1.0_#{index:08X}"
        streams[f"{folder}/__substg1.0_3707001F"] = name.encode("utf-16-le")
        streams[f"{folder}/__substg1.0_37010102"] = raw
        streams[f"{folder}/__properties_version1.0"] = bytes(8) + b"".join(
            (
                struct.pack("<HHIQ", 0x001F, 0x3707, 6, len(name) * 2 + 2),
                struct.pack("<HHIQ", 0x0102, 0x3701, 6, len(raw)),
                struct.pack("<HHIQ", 0x0003, 0x3705, 6, 1),
            )
        )
    return ole(streams)


_FREE, _END, _TABLE_SECTOR, _NONE = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD, 0xFFFFFFFF
_SECTOR, _SMALL_SECTOR, _SMALL = 512, 64, 4096


def ole(streams: Mapping[str, bytes]) -> bytes:
    """An OLE file of these streams, whose folders are the parts of their names; see [MS-CFB]."""
    folders = sorted({name.partition("/")[0] for name in streams if "/" in name})
    top = [*folders, *(name for name in streams if "/" not in name)]
    order = [*top, *(name for name in streams if "/" in name)]
    places = {name: index for index, name in enumerate(order, 1)}

    # Streams below 4,096 bytes lie in small sectors, which are a stream of their own: that of the root.
    small, small_table, big, table = bytearray(), [], bytearray(), []
    starts = {}
    for name, raw in streams.items():
        data, chain, size = (
            (small, small_table, _SMALL_SECTOR) if len(raw) < _SMALL else (big, table, _SECTOR)
        )
        starts[name] = _appended(data, chain, raw, size) if raw else _END
    root_start = _appended(big, table, bytes(small), _SECTOR) if small else _END
    small_start = _appended(big, table, _packed(small_table), _SECTOR) if small_table else _END

    def siblings(names: Sequence[str]) -> int:
        return places[names[0]] if names else _NONE

    entries = [_entry("Root Entry", 5, child=siblings(top), start=root_start, size=len(small))]
    for name in order:
        group = (
            top
            if name in top
            else [each for each in order if each.rpartition("/")[0] == name.rpartition("/")[0]]
        )
        after = group[group.index(name) + 1 :]
        inside = [each for each in order if each.startswith(f"{name}/")]
        entries.append(
            _entry(
                name.rpartition("/")[2],
                1 if name in folders else 2,
                right=siblings(after),
                child=siblings(inside) if name in folders else _NONE,
                start=0 if name in folders else starts[name],
                size=0 if name in folders else len(streams[name]),
            )
        )
    directory_start = _appended(big, table, b"".join(entries), _SECTOR)
    count = 1
    while len(table) + count > count * (_SECTOR // 4):
        count += 1
    sectors = range(len(table), len(table) + count)
    header = struct.pack(
        "<8s16xHHHHH6xIIIIIIIII",
        *(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0x3E, 3, 0xFFFE, 9, 6, 0, count, directory_start, 0, _SMALL),
        *(small_start, -(-len(small_table) * 4 // _SECTOR), _END, 0),
    )
    header += _packed([*sectors, *[_FREE] * (109 - count)])
    big += _packed([*table, *[_TABLE_SECTOR] * count]).ljust(count * _SECTOR, b"\xff")
    return header + bytes(big)


def _packed(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _appended(data: bytearray, chain: list[int], raw: bytes, size: int) -> int:
    """Append a stream to sectors of `size`, and return its first sector."""
    start, count = len(chain), -(-len(raw) // size)
    data += raw.ljust(count * size, b"\0")
    chain += [*range(start + 1, start + count), _END]
    return start


def _entry(name: str, kind: int, *, right: int = _NONE, child: int = _NONE, start: int, size: int) -> bytes:
    text = name.encode("utf-16-le") + b"\0\0"
    return struct.pack("<64sHBBIII16xI16xIQ", text, len(text), kind, 1, _NONE, right, child, 0, start, size)
