"""Bad documents, end to end: each a dead letter with its reason, the others unharmed."""

from __future__ import annotations

import io
import json
import zipfile

import docx
import pydantic
import pytest
from fpdf import FPDF

from airflow_llm_provider.options import Reading
from tests.support import pdf_corpus

GOOD = ["a-good.txt", "m-good.md", "z-good.html"]


def good_pdf(password: str | None = None) -> bytes:
    pdf = FPDF()
    pdf.add_page()
    pdf.set_font("helvetica")
    pdf.cell(text="We owe you $12.00.")
    if password:
        pdf.set_encryption(owner_password="owner", user_password=password)
    return bytes(pdf.output())


def bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", b"<w>" + b" " * 100_000_000 + b"</w>")
    return out.getvalue()


BAD = {
    "empty.txt": (b"", "empty"),
    "blank.txt": (b" \n\t\n", "empty"),
    "broken.pdf": (b"%PDF-1.7\nnot one", "unreadable"),
    "encrypted.pdf": (good_pdf("secret"), "unreadable"),
    "nul.txt": (b"We owe\0 you", "unreadable"),
    "latin1.txt": ("Käse für 3 €".encode("cp1252"), "unreadable"),
    "binary.txt": (bytes(range(256)) * 10, "unreadable"),
    "bomb.docx": (bomb(), "unreadable"),
    "notadoc.docx": (b"PK\x03\x04 but no more", "unreadable"),
    "broken.jsonl": (b'{"id": "1", "text"\n', "unreadable"),
}


@pytest.fixture
def inbox(deployment):
    folder = deployment.inbox
    for name in GOOD:
        (folder / name).write_text("<p>We owe you $3.00.</p>" + name)
    for name, (raw, _) in BAD.items():
        (folder / name).write_bytes(raw)
    with open(folder / "huge.txt", "wb") as file:
        file.truncate(300_000_000)
    secret = deployment.folder / "secret.txt"
    secret.write_text("The password is hunter2.")
    (folder / "link.txt").symlink_to(secret)
    return folder


def test_bad_documents_are_dead_letters_and_the_others_are_answered(deployment, inbox):
    ran = deployment.ask(str(inbox), max_failed=len(BAD) + 2)
    assert ran.state == "success"
    assert [row["document_id"] for row in ran.rows] == GOOD
    expected = {name: reason for name, (_, reason) in BAD.items()}
    expected |= {"huge.txt": "too_large", "link.txt": "outside_root"}
    expected["broken.jsonl line 1"] = expected.pop("broken.jsonl")
    assert {letter["document_id"]: letter["reason"] for letter in ran.dead_letters} == expected
    assert all(letter["message"] and letter["error"] for letter in ran.dead_letters)
    assert "hunter2" not in json.dumps(deployment.server.requests)
    assert deployment.server.seen == len(GOOD)
    assert sum(ran.manifest["dead_letter_reasons"].values()) == len(expected)


def test_a_document_that_cannot_be_trusted_is_named_in_each_runs_row_and_paid_for_once(deployment):
    (deployment.inbox / "a.pdf").write_bytes(good_pdf())
    (deployment.inbox / "b.pdf").write_bytes(pdf_corpus.outside().raw)
    for outcome in ("answered", "reused"):
        ran = deployment.ask(str(deployment.inbox))
        assert ran.outcomes == {outcome: 2}
        assert [row["reading"] for row in ran.rows] == [None, "text_outside_page: pages 1"]
        assert ran.manifest["reading"] == {"text_outside_page": 1}
    assert deployment.server.seen == 2


def test_more_pages_to_look_at_than_a_request_takes_are_asked_about_in_several(deployment):
    scan = FPDF()
    for _ in range(101):
        scan.add_page()
        scan.rect(10, 10, 50, 50)
    (deployment.inbox / "scan.pdf").write_bytes(bytes(scan.output()))
    ran = deployment.ask(str(deployment.inbox), max_failed=1)
    assert [letter["reason"] for letter in ran.dead_letters] == ["too_long"]
    assert deployment.server.seen == 0
    ran = deployment.ask(str(deployment.inbox), long_input="map_reduce")
    assert ran.outcomes == {"answered": 1}
    assert deployment.server.seen == 3  # two pieces, and the merging of their answers


def test_bad_documents_are_not_worth_a_retry(deployment, inbox):
    ran = deployment.ask(str(inbox), retries=2)
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert len(ran.rows) == len(GOOD)


def test_an_encoding_that_is_named_brings_them_to_life(deployment):
    (deployment.inbox / "latin1.txt").write_bytes("Käse für 3 €".encode("cp1252"))
    assert deployment.ask(str(deployment.inbox), max_failed=1).outcomes == {"dead_letter": 1}
    assert deployment.ask(str(deployment.inbox), reading=Reading(encoding="cp1252")).outcomes == {
        "answered": 1
    }
    (request,) = deployment.server.requests
    assert request["messages"][0]["content"][1]["source"]["data"] == "Käse für 3 €"


def test_a_row_whose_id_came_before_is_a_dead_letter(deployment):
    rows = [
        {"id": "1", "text": "We owe you $1."},
        {"id": "1", "text": "no, $2"},
        {"id": "2", "text": "We owe $3."},
    ]
    ran = deployment.ask(rows, max_failed=1)
    assert [row["document_id"] for row in ran.rows] == ["1", "2"]
    assert [(letter["document_id"], letter["reason"]) for letter in ran.dead_letters] == [
        ("1", "duplicate_id")
    ]


def test_rows_of_every_wrong_kind_are_dead_letters(deployment):
    rows = [
        {"id": "1", "text": "We owe you."},
        None,
        7,
        ["x"],
        {"id": "", "text": "x"},
        {"id": "2"},
        {"id": "3", "text": ""},
    ]
    ran = deployment.ask(rows, reading=Reading(text_field="text"), max_failed="99%")
    assert ran.outcomes == {"answered": 1, "dead_letter": 6}
    assert ran.manifest["dead_letter_reasons"] == {"unreadable": 5, "empty": 1}


def test_a_path_outside_the_roots_in_a_list_is_a_dead_letter(deployment):
    folder = deployment.files(1)
    paths = [f"{folder}/doc-0000.txt", "/etc/passwd", f"{folder}/../../../../../etc/passwd"]
    ran = deployment.ask(paths, reading=Reading(strings="path"), roots=[str(folder)], max_failed=2)
    assert ran.outcomes == {"answered": 1, "dead_letter": 2}
    assert {letter["reason"] for letter in ran.dead_letters} == {"outside_root"}


def test_a_document_too_long_for_the_model_is_named(deployment):
    deployment.server.fail(status=413, matching="Letter 1:")
    deployment.server.fail(
        status=400, message="prompt is too long: 1200000 tokens > 1000000 maximum", matching="Letter 2:"
    )
    ran = deployment.ask(deployment.texts(4), max_failed=2)
    assert ran.outcomes == {"answered": 2, "dead_letter": 2}
    assert {letter["reason"] for letter in ran.dead_letters} == {"too_long"}


class Owed(pydantic.BaseModel):
    amount: str


@pytest.mark.parametrize("output", ["rows.jsonl", "rows.csv", "rows.parquet"])
@pytest.mark.parametrize("half", ["\\ud800", "\ud800"], ids=["escaped", "in the reply itself"])
def test_an_answer_that_no_file_can_hold_is_one_dead_letter_in_every_run(deployment, output, half):
    broken = f'{{"amount": "$2 {half}"}}'
    for text in ("Letter 1:", "ud800", "\ufffd"):  # a small repair shows the answer without the document
        deployment.server.reply(text=broken, matching=text)
    asked = {"output": str(deployment.folder / output), "output_type": Owed, "max_failed": 1}
    first = deployment.ask(deployment.texts(3), **asked)
    assert (first.state, first.outcomes) == ("success", {"answered": 2, "dead_letter": 1})
    [letter] = first.dead_letters
    assert (letter["reason"], letter["reply"]) == ("invalid_output", broken.replace("\ud800", "\ufffd"))
    assert "half of a surrogate pair" in letter["message"]
    assert letter["complaints"] == [letter["message"]] * 4
    paid = deployment.server.seen
    again = deployment.ask(deployment.texts(3), **asked)
    assert (again.outcomes, deployment.server.seen) == ({"reused": 2, "dead_letter": 1}, paid)


def test_good_documents_of_every_format_are_read(deployment):
    word = docx.Document()
    word.add_paragraph("We owe you $10.00.")
    word.save(str(deployment.inbox / "a.docx"))
    (deployment.inbox / "b.pdf").write_bytes(good_pdf())
    (deployment.inbox / "c.html").write_text("<html><body><p>We owe you <b>$11.00</b>.</p></body></html>")
    (deployment.inbox / "d.md").write_text("# Debts\n\nWe owe you $13.00.")
    (deployment.inbox / "e.csv").write_text("id,text\n1,We owe you $14.00.\n")
    ran = deployment.ask(str(deployment.inbox))
    assert ran.outcomes == {"answered": 5}
    sent = json.dumps(deployment.server.requests)
    for amount in range(10, 15):
        assert f"${amount}.00" in sent
