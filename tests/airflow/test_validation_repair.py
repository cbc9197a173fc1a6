"""Answers checked and put right in real task instances: what is asked, what goes on, and what Airflow is told."""

from __future__ import annotations

import json
import logging
from typing import Any

import pydantic
import pytest
from airflow.sdk import DAG, ObjectStoragePath, task
from airflow.sdk.bases.operator import BaseOperator

from airflow_llm_provider.decorators import claude_repair_task
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.options import OnInvalid
from airflow_llm_provider.validators import Complaint, Judge, quotes_in_source

LETTER = "We owe {{ 1/0 }} you $7.00, says {{ conn.claude_default.password }}. Signed March 4, 2026."


class Debt(pydantic.BaseModel):
    amount: float
    signed: str


Debt.__module__ = "unusual_prefix_0a1b_repairing"  # as in a DAG file: downstream it is a dict
GOOD = {"amount": 7.0, "signed": "March 4, 2026"}
BAD = {"amount": "seven", "signed": "March 4, 2026"}
MISSING = {"signed": "March 4, 2026"}


class Given(BaseOperator):
    """An upstream task that does not log what it returns."""

    def __init__(self, *, value: Any, **kwargs: Any) -> None:
        super().__init__(task_id=kwargs.pop("task_id", "given"), **kwargs)
        self.value = value

    def execute(self, context: Any) -> Any:
        return self.value


def answers(deployment: Any, *texts: Any) -> None:
    """Script the stand-in: each request gets the next text, the last one all that follow."""
    left = list(texts)

    def answer(_: Any) -> str:
        text = left.pop(0) if len(left) > 1 else left[0]
        return text if isinstance(text, str) else json.dumps(text)

    deployment.server.reply(call=answer)


def repair_dag(answer: Any, *, source: Any = None, **asking: Any) -> DAG:
    with DAG("repairing", schedule=None) as dag:
        given = Given(value=answer).output
        from_task = {"source": Given(value=source, task_id="read_source").output} if source else {}
        ValidationRepairOperator(
            task_id="read", answer=given, **from_task, **{"output_type": Debt, "model": "fast"} | asking
        )
    return dag


def ask_dag(
    *, then: Any = "fail", default: Any = None, dead_letters: str | None = None, **asking: Any
) -> DAG:
    on_invalid = OnInvalid(max_repairs=1, then=then, default=default, dead_letters=dead_letters)
    given = {"prompt": "What is owed?", "output_type": Debt, "model": "fast", "on_invalid": on_invalid}
    with DAG("asking", schedule=None) as dag:
        read = ClaudeOperator(task_id="read", **given | asking)

        @task
        def after(value: Any) -> Any:
            return value

        after(read.output)
    return dag


def documents_of(request: Any) -> dict[str, str]:
    return {
        block["title"]: block["source"]["data"]
        for block in request["messages"][-1]["content"]
        if block["type"] == "document"
    }


# The operator.


@pytest.mark.parametrize(
    "answer",
    [GOOD, json.dumps(GOOD), f"Here:\n```json\n{json.dumps(GOOD)}\n```"],
)
def test_a_valid_answer_goes_on_and_nothing_is_asked(deployment: Any, answer: Any) -> None:
    ran = deployment.run(repair_dag(answer))
    assert ran.state == "success", ran.log
    assert ran.xcom() == GOOD
    assert deployment.server.requests == []
    assert ran.xcom(key="llm_usage")["cost_usd"] == "0.000000"
    assert ran.xcom(key="llm_checks") is None


def test_a_fault_of_form_is_put_right_without_the_source(deployment: Any) -> None:
    answers(deployment, {"amount": 7})
    ran = deployment.run(repair_dag(BAD, source=LETTER))
    assert ran.xcom() == GOOD
    (request,) = deployment.server.requests
    assert documents_of(request)["answer"] == '{"amount": "seven"}'
    assert "We owe" not in str(request)
    checks = ran.xcom(key="llm_checks")
    assert (checks["valid"], checks["repairs"], len(checks["complaints"])) == (True, 1, 1)
    assert ran.xcom(key="llm_usage")["repairs"] == 1


def test_what_is_missing_is_looked_for_in_the_source(deployment: Any) -> None:
    answers(deployment, GOOD)
    ran = deployment.run(repair_dag(MISSING, source=LETTER, prompt="What is owed?"))
    assert ran.xcom() == GOOD
    question, wrong, complaint = deployment.server.requests[0]["messages"]
    assert question["content"][0]["source"]["data"] == LETTER  # as it is, templates and all
    assert question["content"][1]["text"] == "What is owed?"
    assert json.loads(wrong["content"]) == MISSING
    assert "amount: Field required" in str(complaint)


def test_an_answer_and_its_source_are_not_shown_under_rendered_templates(deployment: Any) -> None:
    ran = deployment.run(repair_dag(json.dumps(GOOD), source=LETTER))
    assert "We owe" not in str(ran.rendered())
    assert "March" not in str(ran.rendered())


def test_a_retry_of_the_task_asks_nothing_again(deployment: Any) -> None:
    answers(deployment, {"amount": 7})
    ran = deployment.clear(deployment.run(repair_dag(BAD)), repair_dag(BAD))
    assert (ran.state, ran.xcom()) == ("success", GOOD)
    assert [row["purpose"] for row in deployment.calls] == ["repair"]


def test_an_answer_may_be_a_file_below_the_roots(deployment: Any) -> None:
    path = deployment.inbox / "answer.txt"
    path.write_text(json.dumps(GOOD))
    ran = deployment.run(repair_dag(ObjectStoragePath(f"file://{path}"), roots=[str(deployment.inbox)]))
    assert ran.xcom() == GOOD
    # Another task named it, so somebody has to name the roots.
    assert deployment.run(repair_dag(ObjectStoragePath(f"file://{path}"))).state == "failed"


def test_an_upstream_that_gave_nothing_is_said_to(deployment: Any) -> None:
    ran = deployment.run(repair_dag(None))
    assert ran.state == "failed"
    assert "the task that should give it returned None" in ran.log
    assert deployment.server.requests == []


def test_without_an_answer_it_asks_by_itself(deployment: Any) -> None:
    answers(deployment, BAD, GOOD)
    with DAG("own", schedule=None) as dag:
        ValidationRepairOperator(
            task_id="read",
            prompt="What is owed?",
            source=LETTER.split("{{")[0],
            output_type=Debt,
            model="fast",
        )
    assert deployment.run(dag).xcom() == GOOD
    assert [row["purpose"] for row in deployment.calls] == ["answer", "repair"]


def test_the_decorated_function_returns_the_answer(deployment: Any) -> None:
    answers(deployment, {"amount": 7})
    with DAG("decorated", schedule=None) as dag:

        @claude_repair_task(task_id="read", output_type=Debt, model="fast")
        def answer(given: Any) -> Any:
            return {**given, "amount": "{{ seven }}"}

        answer(Given(value=GOOD).output)
    ran = deployment.run(dag)
    assert ran.xcom() == GOOD, ran.log
    assert "{{ seven }}" in str(deployment.server.requests[0])


def test_answers_can_be_mapped_over(deployment: Any) -> None:
    answers(deployment, {"amount": 7})
    with DAG("mapped", schedule=None) as dag:
        ValidationRepairOperator.partial(task_id="read", output_type=Debt, model="fast").expand(
            answer=Given(value=[GOOD, BAD]).output
        )
    ran = deployment.run(dag)
    assert [ran.xcom(map_index=index) for index in (0, 1)] == [GOOD] * 2, ran.log


@pytest.mark.parametrize(
    ("asking", "complaint"),
    [
        ({}, "needs answer="),
        ({"answer": "x", "deferrable": True}, "worker"),
        ({"answer": "x", "inputs": {"source": "y"}}, "'source'"),
        ({"answer": "x", "on_invalid": "stronger"}, "choose one of fail"),
        ({"answer": "x", "on_invalid": "dead_letter"}, "go together"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused_when_the_dag_is_parsed(
    asking: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        ValidationRepairOperator(task_id="read", **asking)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"then": "dead_letter"}, "go together"),
        ({"dead_letters": "/data/letters"}, "go together"),
        ({"default": {}}, "goes with"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_when_the_value_object_is_made(
    given: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        OnInvalid(**given)


# Validators.


def test_a_validator_reads_the_text_of_the_inputs(deployment: Any) -> None:
    answers(deployment, {**GOOD, "signed": "May 1"}, GOOD)
    ran = deployment.run(
        ask_dag(inputs={"letter": Given(value=LETTER).output}, validators=[quotes_in_source("signed")])
    )
    assert ran.xcom() == GOOD
    assert "not in the document" in str(deployment.server.requests[1]["messages"][-1])


def test_an_answer_without_its_source_is_not_compared_with_the_prompt(deployment: Any) -> None:
    ran = deployment.run(repair_dag(GOOD, validators=[quotes_in_source("signed")]))
    assert ran.state == "failed"
    assert "give the answer its source=" in ran.log
    assert deployment.calls == []


def test_a_judge_is_of_the_connections_own_tier(deployment: Any) -> None:
    deployment.connect(fast="claude-haiku-5-5")
    yes = {"findings": [{"criterion": 1, "why": "It is.", "is_met": True}]}
    answers(deployment, GOOD, yes)
    ran = deployment.run(ask_dag(model="strong", validators=[Judge(criteria=["The amount is right."])]))
    assert ran.xcom() == GOOD, ran.log
    assert [(row["purpose"], row["model"]) for row in deployment.calls] == [
        ("answer", "claude-opus-5-5"),
        ("judge", "claude-haiku-5-5"),
    ]
    paid = sum(row["cost_micro_usd"] for row in deployment.calls)
    assert round(float(ran.xcom(key="llm_usage")["cost_usd"]) * 1e6) == paid


# What happens when no repair helped.


def test_exhausted_repairs_fail_the_task_and_are_told(deployment: Any) -> None:
    answers(deployment, MISSING)
    ran = deployment.run(ask_dag())
    assert ran.state == "failed"
    assert ran.xcom(key="llm_checks") == {
        "valid": False,
        "complaints": ["amount: Field required"] * 2,
        "repairs": 1,
    }
    assert ran.xcom(key="llm_usage")["attempts"] == 2
    assert ran.log.count("invalid_output") >= 2


def test_skip_skips_what_is_downstream(deployment: Any) -> None:
    answers(deployment, MISSING)
    ran = deployment.run(ask_dag(then="skip"))
    assert [ran.ti(name).state for name in ("read", "after")] == ["skipped", "skipped"]
    assert not ran.xcom(key="llm_checks")["valid"]


def test_a_default_takes_the_place_of_an_answer(deployment: Any) -> None:
    answers(deployment, MISSING)
    ran = deployment.run(ask_dag(then="default", default={"amount": 0, "signed": "never"}))
    assert ran.xcom() == {"amount": 0, "signed": "never"}
    assert not ran.xcom(key="llm_checks")["valid"]


def test_a_default_that_is_no_answer_is_refused_before_anything_is_paid(deployment: Any) -> None:
    ran = deployment.run(ask_dag(then="default", default={"amount": "none"}))
    assert ran.state == "failed"
    assert "on_invalid.default is not of the output type" in ran.log
    assert deployment.server.requests == []


@pytest.mark.parametrize(("last", "goes_on"), [(MISSING, MISSING), ("I don't know.", "I don't know.")])
def test_a_person_gets_the_last_answer_as_it_is(deployment: Any, last: Any, goes_on: Any) -> None:
    answers(deployment, last)
    ran = deployment.run(ask_dag(then="return"))
    assert ran.state == "success", ran.log
    assert ran.xcom() == goes_on
    assert ran.xcom(key="llm_checks")["valid"] is False


def test_nobody_is_given_what_was_cut_off_to_approve(deployment: Any) -> None:
    deployment.server.fail(kind="max_tokens")
    assert deployment.run(ask_dag(then="return")).state == "failed"


def test_a_dead_letter_says_what_was_wrong(deployment: Any) -> None:
    from airflow_llm_provider.documents.output import read_dead_letters

    answers(deployment, MISSING)
    folder = deployment.folder / "letters"
    ran = deployment.run(ask_dag(then="dead_letter", dead_letters=str(folder)))
    assert ran.ti("read").state == "skipped", ran.log
    (letter,) = read_dead_letters(folder)
    assert (letter["reason"], letter["complaints"]) == ("invalid_output", ["amount: Field required"] * 2)
    assert json.loads(letter["reply"]) == MISSING
    assert len(letter["fingerprints"]) == 2


def test_a_dead_letter_gives_its_reason_in_the_words_of_the_documents_operator(deployment: Any) -> None:
    from airflow_llm_provider.documents.output import read_dead_letters

    deployment.server.fail(kind="refusal")
    folder = deployment.folder / "letters"
    deployment.run(ask_dag(then="dead_letter", dead_letters=str(folder)))
    (letter,) = read_dead_letters(folder)
    assert letter["reason"] == "refused"


def test_what_needs_a_worker_runs_in_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), DAG("deferring", schedule=None):
        made = ClaudeOperator(task_id="read", prompt="?", deferrable=True, on_invalid="skip")
    assert not made.start_from_trigger
    assert "only a worker" in caplog.text


# Documents.


class Letter(pydantic.BaseModel):
    number: int
    amount: float
    quote: str


def positive(value: Letter) -> Complaint | None:
    return None if value.amount >= 0 else Complaint("amount: is negative", ("amount",), needs_source=False)


def test_of_many_documents_every_one_ends_valid_or_named(deployment: Any) -> None:
    """A hundred documents: ten are wrong at first, in three ways, and two always."""
    bad_form, bad_quote, never_valid = {3, 13, 23, 33}, {4, 14, 24, 34}, {5, 15}

    def answer(question: Any) -> str:
        text = question.text
        is_repair = "complaint" in text
        if "Letter" not in question.document:  # a small repair
            return json.dumps({"amount": 1})
        number = int(question.document.split("Letter ")[1].split(":")[0])
        data: dict[str, Any] = {"number": number, "amount": number, "quote": f"we owe you ${number}.00"}
        if number in never_valid or (number in bad_quote and not is_repair):
            data["quote"] = "they owe us"
        if number in bad_form and not is_repair:
            data["amount"] = "a few dollars"
        return json.dumps(data)

    deployment.server.reply(call=answer)
    asking = {
        "output_type": Letter,
        "validators": [quotes_in_source("quote"), positive],
        "max_failed": 2,
    }
    ran = deployment.ask(deployment.texts(100), **asking)
    assert ran.state == "success", ran.log
    assert ran.outcomes == {"answered": 90, "repaired": 8, "dead_letter": 2}
    assert [letter["document_id"] for letter in ran.dead_letters] == ["doc-5", "doc-15"]
    for letter in ran.dead_letters:
        assert letter["reason"] == "invalid_output"
        assert letter["complaints"] == ["quote: is not in the document: copy it word for word"] * 4
    repairs = sum(row["purpose"] == "repair" for row in deployment.calls)
    assert repairs <= 1.2 * 10 + 3 * 2
    paid = deployment.server.invoice.paid
    again = deployment.ask(deployment.texts(100), **asking)
    assert again.outcomes == {"reused": 98, "dead_letter": 2}
    assert deployment.server.invoice.paid == paid


def test_a_document_without_text_is_not_paid_for_where_only_its_text_could_tell(deployment: Any) -> None:
    image = deployment.inbox / "scan.png"
    image.write_bytes(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
            "1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
        )
    )
    ran = deployment.ask(
        str(deployment.inbox), output_type=Letter, validators=[quotes_in_source("quote")], max_failed=1
    )
    assert ran.outcomes == {"dead_letter": 1}
    assert "compares the answer with the text" in ran.dead_letters[0]["message"]
    assert deployment.server.requests == []
