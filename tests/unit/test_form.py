"""Text of documents and models stays in its frame, and the form changes nothing that a person left alone."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from airflow_llm_provider.approvals import form
from airflow_llm_provider.engine.request import to_json
from airflow_llm_provider.errors import InvalidOutput

MARKDOWN = MarkdownIt("commonmark").enable("table")
NASTY = [
    "```",
    "````\n",
    "~~~",
    "<b>",
    "</code>",
    "![x](http://e)",
    "[a](b)",
    "|",
    "\\|",
    "\\",
    "\r\n",
    "\r",
    "# h",
]
TEXT = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=8))).map("".join)
NUMBERS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False))
DATA = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


def tokens(markdown: str) -> list[Any]:
    return [inner for token in MARKDOWN.parse(markdown) for inner in (token, *(token.children or ()))]


def text_of(inline: Any) -> str:
    return "".join(child.content for child in inline.children or ())


def as_written(text: str) -> str:
    """Return text as a frame must have it: what can't be seen written out."""
    return form.visible(text.replace("\r\n", "\n"))


@given(TEXT)
def test_a_text_is_shown_whole_in_one_frame_that_it_can_not_leave(text: str) -> None:
    fences = [token for token in tokens(form.show(text)) if token.type == "fence"]
    assert [fence.content for fence in fences] == [as_written(text) + "\n"]
    others = {t.type for t in tokens(form.show(text))} - {"fence"}
    assert others <= {"paragraph_open", "inline", "em_open", "text", "em_close", "paragraph_close"}


@given(DATA)
def test_data_is_shown_whole_and_nothing_in_it_is_markdown_or_html(data: Any) -> None:
    shown = tokens(form.show(data))
    kinds = {token.type for token in shown}
    assert not {
        kind for kind in kinds if "html" in kind or "link" in kind or "image" in kind or "head" in kind
    } - {
        "thead_open",
        "thead_close",
    }
    if isinstance(data, dict):
        cells = [text_of(token) for token in shown if token.type == "inline"]
        frames = [token.content for token in shown if token.type == "fence"]
        for value in data.values():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
            assert text in cells or as_written(text) + "\n" in frames


def test_a_table_shows_each_cell_as_it_is() -> None:
    rows = [
        {"a|b": "x|y \\| z", "n": 12.5},
        {"n": None, "more": "<i>![p](q)</i> *s* `c` &amp; https://e.com"},
    ]
    cells = [text_of(token) for token in MARKDOWN.parse(form.show(rows)) if token.type == "inline"]
    assert cells == ["a|b", "n", "more", "x|y \\| z", "12.5", "", "", "null", rows[1]["more"]]


def browsed(value: Any) -> Any:
    """Return data as a browser's JSON sends it back, untouched: its numbers, and its order of fields."""
    if isinstance(value, dict):
        order = sorted(value, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0))
        return {name: browsed(value[name]) for name in order}
    if isinstance(value, list):
        return [browsed(each) for each in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    number = float(value)
    return int(number) if number.is_integer() and math.fabs(number) < 1e21 else number


@given(DATA)
def test_what_nobody_touched_is_what_it_was_to_the_byte(data: Any) -> None:
    content = json.loads(to_json(data))
    (field,) = [value for name, value in form.fields(content, editable=True).items() if name == form.CONTENT]
    if isinstance(field["value"], str):
        assert not field["value"].strip().startswith("{")  # the page would take it for an object
    assert form.edited(content, {form.CONTENT: browsed(field["value"])}) is content
    assert to_json(content) == to_json(json.loads(to_json(content)))


@pytest.mark.parametrize(
    ("content", "typed", "edited"),
    [
        ("a\nb", ["a", "c"], "a\nc"),
        ("a\nb", "a\nc", "a\nc"),
        ("a", None, ""),
        ('{"a": 1}', ['{"a": 2}'], '{"a": 2}'),
        ({"a": 1.0, "b": 1}, {"a": 1, "b": 2}, {"a": 1.0, "b": 2}),
        ({"a": 1}, {"a": True}, {"a": True}),
        ({"a": False}, {"a": 0}, {"a": 0}),
        ({"a": 1, "b": 2}, {"a": 1}, {"a": 1}),
        ([1, 2], [1, 2, 3], [1, 2, 3]),
        (["a", "b"], ["a"], ["a"]),
        ({"id": 2**60}, json.dumps({"id": 2**60 + 1}, indent=2).split("\n"), {"id": 2**60 + 1}),
        ({"id": 2**60}, ['{"id": 123456789012345678901234567890}'], {"id": 123456789012345678901234567890}),
        (12.5, ["13"], 13),
        (None, ["null"], None),
    ],
)
def test_an_edit_is_what_was_typed(content: Any, typed: Any, edited: Any) -> None:
    assert to_json(form.edited(content, {form.CONTENT: typed})) == to_json(edited)


@pytest.mark.parametrize(
    ("content", "typed", "complaint"),
    [
        ({"a": 1}, None, "is empty"),
        ({"id": 2**60}, ['{"id": '], "is not JSON: Expecting value"),
        (12.5, None, "is not JSON"),
        (12.5, ["1e999"], "a number that can't be kept exactly"),
        (12.5, ["NaN"], "a number that can't be kept exactly"),
        ("text", {"a": 1}, "neither text nor a list of its lines"),
        ("text", [1], "neither text nor a list of its lines"),
    ],
)
def test_an_edit_that_can_not_be_read_is_named(content: Any, typed: Any, complaint: str) -> None:
    with pytest.raises(InvalidOutput, match=complaint):
        form.edited(content, {form.CONTENT: typed})


def test_characters_that_can_not_be_seen_are_written_out_and_said() -> None:
    shown = form.show("pay \u202e001\u202c to\u200b me\x00\n")
    assert "4 characters draw nothing" in shown
    assert "pay \\u202e001\\u202c to\\u200b me\\u0000" in shown
    assert "can't be seen" not in form.show("naïve\u00a0東京\ttab\r\n")


DRAWS_NOTHING = [
    ("\ufe0f", "\\ufe0f", "U+FE0F VARIATION SELECTOR-16"),
    ("\U000e0101", "\\U000e0101", "U+E0101 VARIATION SELECTOR-18"),
    ("\u115f", "\\u115f", "U+115F HANGUL CHOSEONG FILLER"),
    ("\u1160", "\\u1160", "U+1160 HANGUL JUNGSEONG FILLER"),
    ("\u3164", "\\u3164", "U+3164 HANGUL FILLER"),
    ("\uffa0", "\\uffa0", "U+FFA0 HALFWIDTH HANGUL FILLER"),
    ("\u2800", "\\u2800", "U+2800 BRAILLE PATTERN BLANK"),
    ("\u034f", "\\u034f", "U+034F COMBINING GRAPHEME JOINER"),
    ("\u180b", "\\u180b", "U+180B MONGOLIAN FREE VARIATION SELECTOR ONE"),
    ("\u17b4", "\\u17b4", "U+17B4 KHMER VOWEL INHERENT AQ"),
    ("\u200b", "\\u200b", "U+200B ZERO WIDTH SPACE"),
    ("\u202e", "\\u202e", "U+202E RIGHT-TO-LEFT OVERRIDE"),
    ("\u00ad", "\\u00ad", "U+00AD SOFT HYPHEN"),
    ("\U000e0041", "\\U000e0041", "U+E0041 TAG LATIN CAPITAL LETTER A"),
    ("\U0001d159", "\\U0001d159", "U+1D159 MUSICAL SYMBOL NULL NOTEHEAD"),
    ("\u2065", "\\u2065", "U+2065 (no name)"),
]


@pytest.mark.parametrize(("character", "code", "name"), DRAWS_NOTHING, ids=lambda value: ascii(value))
def test_a_character_that_draws_nothing_is_shown_as_its_code_and_counted(
    character: str, code: str, name: str
) -> None:
    text = f"pay{character} 40{character}"
    for content in (text, {"to": text}, [{"to": text}], {"to": {text: 1}}):
        shown = form.show(content)
        assert character not in shown
        assert f"pay{code} 40{code}" in shown
        note = next(text_of(token) for token in tokens(shown) if "nothing" in token.content)
        assert note == f"2 characters draw nothing and are written as their codes: 2 of {name}."
    assert form.line(f"a{character}b").replace("\\", "") == f"a{code}b".replace("\\", "")


def test_a_field_whose_name_holds_one_is_counted_too() -> None:
    shown = form.show({"amount\u200b": 40}).replace("\\", "")
    assert "1 character draws nothing and is written as its code: 1 of U+200B ZERO WIDTH SPACE." in shown
    assert "amountu200b:" in shown


def test_every_kind_of_them_is_counted_up_to_twenty() -> None:
    hidden = "".join(chr(0xE0020 + number) for number in range(30))
    note = next(
        text_of(token)
        for token in tokens(form.show(f"a{hidden}" + "\u200b" * 5))
        if "nothing" in token.content
    )
    assert note.startswith(
        "35 characters draw nothing and are written as their codes: 5 of U+200B ZERO WIDTH SPACE, 1"
    )
    assert note.endswith(", 11 other kinds.")
    assert "1 character draws nothing and is written as its code: 1 of U" in form.show("\u200b").replace(
        "\\", ""
    )


# All of Default_Ignorable_Code_Point, which a page may leave out: DerivedCoreProperties.txt of Unicode 17.0
# (https://www.unicode.org/Public/17.0.0/ucd/DerivedCoreProperties.txt), the same since 14.0. Python has no such list.
DEFAULT_IGNORABLE = (
    *((0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5)),
    *((0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164)),
    *((0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3)),
    *((0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
)
IGNORABLE = [chr(code) for first, last in DEFAULT_IGNORABLE for code in range(first, last + 1)]
# By their general category: controls of direction and format, of unassigned and of private use, and line separators.
UNSEEN_CATEGORIES = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")


def test_every_character_that_a_page_may_ignore_is_shown_as_its_code() -> None:
    assert len(IGNORABLE) == 4174  # as the file says
    text = "".join(f"{character}a" for character in IGNORABLE)
    shown = form.show(text)
    assert not set(IGNORABLE) & {*shown}
    assert shown.count("\\u") + shown.count("\\U") == 4174
    assert "4,174 characters draw nothing" in shown.replace("\\", "")


@given(st.one_of(st.sampled_from(IGNORABLE), st.characters(categories=UNSEEN_CATEGORIES)), TEXT)
def test_a_character_that_draws_nothing_is_counted_wherever_it_stands(character: str, text: str) -> None:
    assume(character not in "\n\t\r")
    hidden = f"a{character}{text}"
    name = f"U+{ord(character):04X}"
    for content in (hidden, {"to": hidden}, {hidden: 1}, [{"to": hidden}], [hidden, 2]):
        if "\\" in json.dumps(character, ensure_ascii=False) and not isinstance(content, str):
            continue  # JSON writes controls as their codes itself
        shown = form.show(content)
        assert character not in shown
        assert name in shown.replace("\\", "") or "other kinds" in shown
    field = form.fields(hidden, editable=True)[form.CONTENT]
    assert name in field["description"] or "other kinds" in field["description"]
    assert "\n".join(field["value"]) == hidden


def test_a_field_without_such_characters_is_described_as_always() -> None:
    assert "draw" not in form.fields("Größe\r\n日本語 👍", editable=True)[form.CONTENT]["description"]


def test_letters_of_every_script_and_emoji_are_shown_as_they_are() -> None:
    text = "Größe Ελλάδα Привет שלום العربية हिन्दी ไทย 한국어 日本語 👍 ⠓ ≠"
    assert form.show(text) == f"```text\n{text}\n```"
