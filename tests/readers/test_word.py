"""A Word document is read as its printout shows it, with tracked changes accepted."""

# ruff: noqa: E501 - a line of XML is one line

from __future__ import annotations

import io
import zipfile

import pytest

from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.readers.docx import read_docx
from airflow_llm_provider.documents.readers.numbering import number
from airflow_llm_provider.options import Reading
from tests.support.office import docx, p, r, replaced, zipped


def lines(body: str, **parts: str) -> list[str]:
    (part,) = read_docx(docx(body, **parts), Reading())
    return part.data.split("\n")


def level(depth: int, text: str, kind: str = "decimal", more: str = "") -> str:
    return f'<w:lvl w:ilvl="{depth}"><w:start w:val="1"/><w:numFmt w:val="{kind}"/>{more}<w:lvlText w:val="{text}"/></w:lvl>'


def numbering(*levels: str, lists: str = "") -> str:
    return (
        f'<w:abstractNum w:abstractNumId="7">{"".join(levels)}</w:abstractNum>'
        f'<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num>{lists}'
    )


def clause(text: str, depth: int, list_id: int = 1) -> str:
    return p(text, f'<w:numPr><w:ilvl w:val="{depth}"/><w:numId w:val="{list_id}"/></w:numPr>')


CLAUSES = (
    level(0, "%1."),
    level(1, "%1.%2"),
    level(2, "(%3)", "lowerLetter"),
    level(3, "(%4)", "lowerRoman"),
)


def test_clauses_have_the_numbers_that_word_computes():
    texts = [
        ("Term", 0),
        ("Start", 1),
        ("End", 1),
        ("by notice", 2),
        ("by breach", 2),
        ("grave", 3),
        ("minor", 3),
    ]
    texts += [("Fees", 0), ("Amount", 1), ("in euros", 2)]
    body = "".join(clause(*each) for each in texts)
    assert lines(body, numbering=numbering(*CLAUSES)) == [
        *("1. Term", "1.1 Start", "1.2 End", "(a) by notice", "(b) by breach", "(i) grave", "(ii) minor"),
        *("2. Fees", "2.1 Amount", "(a) in euros"),
    ]


def test_a_style_numbers_its_paragraphs():
    heading = (
        '<w:style w:type="paragraph" w:styleId="H1"><w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr></w:style>'
        '<w:style w:type="paragraph" w:styleId="H2"><w:basedOn w:val="H1"/><w:pPr><w:numPr><w:ilvl w:val="1"/></w:numPr></w:pPr></w:style>'
        '<w:style w:type="paragraph" w:styleId="Plain"><w:basedOn w:val="H1"/><w:pPr><w:numPr><w:numId w:val="0"/></w:numPr></w:pPr></w:style>'
    )
    levels = numbering(
        level(0, "Article %1", "upperRoman", '<w:pStyle w:val="H1"/>'),
        level(1, "Section %1.%2", "decimal", '<w:pStyle w:val="H2"/><w:isLgl/>'),
    )
    body = "".join(
        p(text, f'<w:pStyle w:val="{style}"/>')
        for text, style in [("One", "H1"), ("Sub", "H2"), ("No", "Plain"), ("Two", "H1")]
    )
    assert lines(body, styles=heading, numbering=levels) == [
        "Article I One",
        "Section 1.1 Sub",
        "No",
        "Article II Two",
    ]


def test_a_list_goes_on_after_other_text_and_begins_anew_where_it_says_so():
    again = '<w:num w:numId="2"><w:abstractNumId w:val="7"/></w:num>'
    anew = '<w:num w:numId="3"><w:abstractNumId w:val="7"/><w:lvlOverride w:ilvl="0"><w:startOverride w:val="5"/></w:lvlOverride></w:num>'
    body = clause("a", 0) + p("between") + clause("b", 0, 2) + clause("c", 0, 3) + clause("d", 0, 3)
    found = lines(body, numbering=numbering(level(0, "%1)"), lists=again + anew))
    assert found == ["1) a", "between", "2) b", "5) c", "6) d"]


def test_bullets_and_levels_without_a_number():
    body = clause("x", 0) + clause("y", 1)
    assert lines(body, numbering=numbering(level(0, "\uf0b7", "bullet"), level(1, "", "none"))) == [
        "• x",
        "y",
    ]


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        (4, "lowerRoman", "iv"),
        (1990, "upperRoman", "MCMXC"),
        (26, "lowerLetter", "z"),
        (27, "lowerLetter", "aa"),
        (53, "upperLetter", "AAA"),
        (3, "decimalZero", "03"),
        (22, "ordinal", "22nd"),
        (113, "ordinal", "113th"),
        (0, "lowerRoman", "0"),
        (9, "chineseCounting", "9"),
    ],
)
def test_numbers_are_written_as_word_writes_them(value, kind, shown):
    assert number(value, kind) == shown


def test_page_headers_and_footers_are_read_once_where_their_section_is():
    def section(more: str = "", *, within: str = "") -> str:
        return f'<w:sectPr><w:headerReference w:type="default" r:id="header1"/><w:footerReference w:type="default" r:id="footer1"/>{within}{more}</w:sectPr>'

    first = '<w:headerReference w:type="first" r:id="header2"/>'
    body = p("one", section()) + p("two") + section("<w:titlePg/>", within=first)
    found = lines(body, header1=p("Letterhead"), footer1=p("Page footer"), header2=p("First page"))
    assert found == ["Letterhead", "one", "Page footer", "First page", "two"]
    # Neither of these is printed: the document has no different first page, and no different even pages.
    body = p("one") + section(within=first + '<w:headerReference w:type="even" r:id="header3"/>')
    found = lines(
        body, header1=p("Letterhead"), footer1=p("Page footer"), header2=p("First"), header3=p("Even")
    )
    assert found == ["Letterhead", "one", "Page footer"]


def test_a_watermark_is_read():
    body = p("text") + '<w:sectPr><w:headerReference w:type="default" r:id="header1"/></w:sectPr>'
    mark = '<w:p><w:r><w:pict><v:shape><v:textpath string="DRAFT"/></v:shape></w:pict></w:r></w:p>'
    assert lines(body, header1=mark) == ["DRAFT", "text"]


def test_tracked_changes_are_read_as_accepted():
    moved = f'<w:moveFrom w:id="1">{r("moved text")}</w:moveFrom>'
    here = f'<w:moveTo w:id="2">{r("moved text")}</w:moveTo>'
    body = (
        f"<w:p>{r('Keep ')}<w:del><w:r><w:delText>old</w:delText></w:r></w:del><w:ins>{r('new')}</w:ins>{moved}</w:p>"
        f"<w:p>{here}</w:p>"
        # A paragraph whose mark was removed is joined to the next one.
        f"<w:p><w:pPr><w:rPr><w:del/></w:rPr></w:pPr>{r('joined ')}</w:p>{p('together')}"
        f"<w:tbl><w:tr><w:trPr><w:del/></w:trPr><w:tc>{p('gone row')}</w:tc></w:tr><w:tr><w:tc>{p('kept row')}</w:tc></w:tr></w:tbl>"
    )
    assert lines(body) == ["Keep new", "moved text", "joined together", "kept row"]


def test_a_removed_clause_does_not_count():
    removed = '<w:p><w:pPr><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr><w:rPr><w:del/></w:rPr></w:pPr><w:del><w:r><w:delText>b</w:delText></w:r></w:del></w:p>'
    body = clause("a", 0) + removed + clause("c", 0)
    assert lines(body, numbering=numbering(level(0, "%1."))) == ["1. a", "2. c"]


def test_hidden_text_is_not_sent():
    hidden = '<w:style w:type="character" w:styleId="Gone"><w:rPr><w:vanish/></w:rPr></w:style>'
    hidden += '<w:style w:type="paragraph" w:styleId="GonePar"><w:rPr><w:vanish/></w:rPr></w:style>'
    body = (
        f"<w:p>{r('seen ')}{r('secret1', '<w:vanish/>')}{r('secret2', '<w:rStyle w:val=&quot;Gone&quot;/>'.replace('&quot;', chr(34)))}"
        f"{r('on', '<w:vanish w:val=&quot;0&quot;/>'.replace('&quot;', chr(34)))}</w:p>"
        + p("secret3", '<w:pStyle w:val="GonePar"/>')
        + p("secret4", "<w:rPr><w:vanish/></w:rPr>", "<w:vanish/>")
        + p("end")
    )
    assert lines(body, styles=hidden) == ["seen on", "end"]


def test_notes_stand_at_the_end_under_their_marks_and_comments_nowhere():
    body = (
        f'<w:p>{r("One")}<w:r><w:footnoteReference w:id="5"/></w:r>{r(" two")}<w:r><w:endnoteReference w:id="2"/></w:r>'
        f'<w:r><w:footnoteReference w:id="4"/></w:r><w:r><w:commentReference w:id="1"/></w:r></w:p>'
    )
    notes = f'<w:footnote w:id="0" w:type="separator">{p("---")}</w:footnote><w:footnote w:id="4">{p("second note")}</w:footnote>'
    notes += f'<w:footnote w:id="5">{p("first note")}</w:footnote>'
    end = f'<w:endnote w:id="2">{p("at the end")}</w:endnote>'
    found = lines(body, footnotes=notes, endnotes=end, comments=f"<w:comment>{p('a comment')}</w:comment>")
    assert found == ["One[1] two[i][2]", "[1] first note", "[2] second note", "[i] at the end"]


def test_a_field_shows_its_result_and_not_its_code():
    def mark(kind: str, more: str = "") -> str:
        return f'<w:r><w:fldChar w:fldCharType="{kind}">{more}</w:fldChar></w:r>'

    code = f"<w:r><w:instrText> IF </w:instrText></w:r>{mark('begin')}{mark('separate')}{r('inner')}{mark('end')}"
    field = f"{mark('begin')}{code}{mark('separate')}{r('result')}{mark('end')}"
    assert lines(f"<w:p>{r('a ')}{field}{r(' b')}</w:p>") == ["a result b"]
    # One that is never closed hides nothing.
    assert lines(f"<w:p>{mark('begin')}{r('kept')}</w:p>") == ["kept"]
    box = "<w:ffData><w:checkBox><w:checked/></w:checkBox></w:ffData>"
    choice = '<w:ffData><w:ddList><w:result w:val="1"/><w:listEntry w:val="net"/><w:listEntry w:val="gross"/></w:ddList></w:ffData>'
    form = f"{mark('begin', box)}{mark('end')}{r(' paid ')}{mark('begin', choice)}{mark('end')}"
    assert lines(f"<w:p>{form}</w:p>") == ["☒ paid gross"]


def test_symbols_and_formulas_and_charts_are_read():
    sym = '<w:r><w:sym w:font="Wingdings" w:char="F0FE"/></w:r>'
    chart = '<w:r><w:drawing><c:chart r:id="chart1"/></w:drawing></w:r>'
    body = f"<w:p>{sym}{r(' ')}<m:oMath><m:r><m:t>x=2</m:t></m:r></m:oMath>{chart}</w:p>"
    points = "<c:ser><c:tx><c:v>Sales</c:v></c:tx><c:cat><c:pt><c:v>Q1</c:v></c:pt></c:cat><c:val><c:pt><c:v>10.5</c:v></c:pt></c:val></c:ser>"
    assert lines(body, chart1=f"<c:chart>{points}</c:chart>") == ["☒ x=2", "\tQ1", "Sales\t10.5"]


def test_content_controls_and_boxes_and_tables_are_read_in_order():
    control = (
        f"<w:sdt><w:sdtPr><w:alias w:val='no'/></w:sdtPr><w:sdtContent>{p('control')}</w:sdtContent></w:sdt>"
    )
    box = f"<w:p>{r('before the box')}<w:r><w:pict><v:textbox><w:txbxContent>{p('in the box')}</w:txbxContent></v:textbox></w:pict></w:r></w:p>"
    row = "".join(f"<w:tc>{p(text)}{p('more')}</w:tc>" for text in ("A", "B"))
    table = f"<w:tbl><w:sdt><w:sdtContent><w:tr>{row}</w:tr></w:sdtContent></w:sdt></w:tbl>"
    assert lines(control + box + table) == ["control", "before the box", "in the box", "A more\tB more"]


def test_a_web_page_within_a_document_is_a_part_of_its_text():
    raw = docx(p("before") + '<w:altChunk r:id="chunk"/>' + p("after"))
    with zipfile.ZipFile(io.BytesIO(raw)) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    relation = b'<Relationship Id="chunk" Type="http://x/relationships/aFChunk" Target="afchunk.htm"/></Relationships>'
    rels = "word/_rels/document.xml.rels"
    files[rels] = files[rels].replace(b"</Relationships>", relation)
    (part,) = read_docx(zipped(files | {"word/afchunk.htm": "<p>within</p>"}), Reading())
    assert part.data.split("\n") == ["before", "within", "after"]


@pytest.mark.parametrize(
    "dtd", ['<!DOCTYPE w [<!ENTITY x "expanded">]>', '<!DOCTYPE w SYSTEM "http://127.0.0.1/x.dtd">']
)
def test_a_document_with_entities_is_not_read(dtd):
    with pytest.raises(Unreadable, match="entities"):
        read_docx(zipped({"word/document.xml": f"{dtd}<w>&x;</w>"}), Reading())


def test_a_document_type_that_is_elsewhere_is_not_loaded():
    raw = docx(p("text"))
    typed = replaced(raw, b"<w:document ", b'<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd"><w:document ')
    assert read_docx(typed, Reading()) == read_docx(raw, Reading())
