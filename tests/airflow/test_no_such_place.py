"""Paths that can't be: one among the documents is a dead letter, one for the rows is said before anything is paid."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_llm_provider.options import Reading


def test_bad_paths_in_a_list_are_dead_letters_and_the_others_are_asked(deployment, monkeypatch):
    monkeypatch.chdir(deployment.folder)  # below which the rows go
    folder = deployment.files(2)
    good = sorted(str(path) for path in Path(folder).iterdir())
    bad = ["a\0b.txt", "\ud800.txt", "/" + "x" * 300, "/data/**.txt", "foo://x/y", ""]
    ran = deployment.ask(
        [good[0], *bad, good[1]],
        reading=Reading(strings="path"),
        roots=[str(folder), "/x", "/data"],
        max_failed=9,
    )
    assert ran.state == "success"
    assert [row["document_id"] for row in ran.rows] == good
    assert len(ran.dead_letters) == len(bad)
    assert {letter["reason"] for letter in ran.dead_letters} <= {"unreadable", "outside_root"}


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("taken.jsonl", "'taken.jsonl' is a folder"),
        ("file/rows.jsonl", "exists"),
        ("x" * 240 + ".jsonl", "too long"),
        ("a\0b/rows.jsonl", "embedded null"),
    ],
)
def test_rows_that_can_not_be_put_anywhere_fail_the_task_before_anything_is_paid(deployment, output, says):
    (deployment.folder / "taken.jsonl").mkdir()
    (deployment.folder / "file").touch()
    ran = deployment.ask(deployment.texts(2), output=f"{deployment.folder}/{output}", retries=1)
    assert ran.state == "failed"
    assert ran.ti().try_number == 1
    assert says in ran.log
    assert deployment.server.seen == 0
