"""One question through a real task instance: what is asked, what comes back, and what Airflow is told."""

from __future__ import annotations

import base64
import enum
import json
from typing import ClassVar, Literal

import pydantic
import pytest
import structlog
from airflow.sdk import DAG, ObjectStoragePath, task
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.io import attach
from desk import Desk
from fsspec.implementations.memory import MemoryFileSystem

from airflow_llm_provider.errors import BusinessError, NetworkError, Overloaded, RateLimited
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.task import ClaudeRetryPolicy
from airflow_llm_provider.options import LongInput, OnInvalid, RequestFields, Route

LETTER = "We owe {{ 1/0 }} you $7.00, says {{ conn.claude_default.password }}. Signed March 4, 2026."
PLAIN = "We owe you $7.00. Signed March 4, 2026."
FAST, STRONG = "claude-haiku-5-5", "claude-opus-5-5"


class Debt(pydantic.BaseModel):
    amount: float
    signed: str


class Kind(enum.Enum):
    LETTER = "letter"
    INVOICE = "invoice"


class Sure(pydantic.BaseModel):
    answer: str
    confidence: float


# As Airflow names the module of a DAG file: by a hash of its path, which other machines don't share.
LocalDebt = type("LocalDebt", (Debt,), {"__module__": "unusual_prefix_0a1b_nightly"})
SCHEMA = {
    "type": "object",
    "properties": {"amount": {"type": "number"}},
    "required": ["amount"],
    "additionalProperties": False,
}


class Export(BaseOperator):
    """An upstream task that, unlike `@task`, does not log what it returns."""

    def __init__(self, value, **kwargs):
        super().__init__(task_id=kwargs.pop("task_id", "export"), **kwargs)
        self.value = value

    def execute(self, context):
        return self.value


class Arrived(BaseOperator):
    """A downstream task that keeps what it got."""

    template_fields = ("value",)
    got: ClassVar[list] = []

    def __init__(self, value, **kwargs):
        super().__init__(task_id="arrived", **kwargs)
        self.value = value

    def execute(self, context):
        Arrived.got.append(self.value)


def downstream(dag):
    """Let this process take what `dag` returns, as a worker that parses its file does."""
    from airflow.sdk.execution_time.task_runner import _register_deserialization_allowed_classes

    _register_deserialization_allowed_classes(dag, structlog.get_logger())
    return dag


def a_dag(name="one", *, retries=0, params=None, tags=(), **asking):
    with DAG(name, schedule=None, params=params, tags=list(tags)) as dag:
        ClaudeOperator(
            task_id="read",
            retries=retries,
            retry_delay=0,
            **{"prompt": "What is owed?", "model": "fast"} | asking,
        )
    return dag


@pytest.fixture
def ask(deployment):
    def ask(*, run_conf=None, **asking):
        return deployment.run(a_dag(**asking), run_conf=run_conf)

    return ask


def sent(deployment, number=-1):
    return deployment.server.requests[number]


# What comes back.


def test_text_comes_back_as_text(ask):
    ran = ask(inputs={"letter": "We owe you $7.00."})
    assert (ran.state, ran.xcom()) == ("success", "We owe you $7.00.")


@pytest.mark.parametrize(
    ("output_type", "expected"),
    [
        (Debt, Debt(amount=7.0, signed="March 4, 2026")),
        (LocalDebt, {"amount": 7.0, "signed": "March 4, 2026"}),
        (SCHEMA, {"amount": 7.0}),
        (Kind, "letter"),
        (list[Debt], [Debt(amount=7.0, signed="March 4, 2026")]),
        (list[LocalDebt], [{"amount": 7.0, "signed": "March 4, 2026"}]),
        (list[str], ["owed", "signed"]),
        (Debt | None, Debt(amount=7.0, signed="March 4, 2026")),
        (int | str, 7),
        (Literal["letter", "invoice"], "letter"),
        (bool, True),
    ],
    ids=str,
)
def test_data_arrives_downstream_as_its_type(deployment, output_type, expected):
    debt = {"amount": 7.0, "signed": "March 4, 2026"}
    data = {
        str(Kind): "letter",
        str(list[Debt]): [debt],
        str(list[LocalDebt]): [debt],
        str(list[str]): ["owed", "signed"],
        str(int | str): 7,
        str(Literal["letter", "invoice"]): "letter",
        str(bool): True,
        str(SCHEMA): {"amount": 7.0},
    }.get(str(output_type), debt)

    def reply(question):
        fields = question.schema["properties"]
        (field,) = fields if len(fields) == 1 and "amount" not in fields else [None]
        return {field: data} if field else data

    deployment.server.reply(call=reply)
    dag = a_dag(output_type=output_type)
    with dag:
        Arrived(value=dag.task_dict["read"].output)
    Arrived.got.clear()
    ran = deployment.run(downstream(dag))
    assert ran.state == "success", ran.log
    assert Arrived.got == [expected]
    assert type(Arrived.got[0]) is type(expected)


def test_a_second_xcom_says_what_the_call_took(deployment, ask):
    ran = ask(inputs={"letter": "We owe you $7.00."})
    usage = ran.xcom(key="llm_usage")
    (row,) = deployment.calls
    assert usage == {
        "model": FAST,
        "stop_reason": "end_turn",
        "input_tokens": row["uncached_tokens"],
        "output_tokens": row["output_tokens"],
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "cost_usd": f"{row['cost_micro_usd'] / 1e6:.6f}",
        "reused": False,
        "attempts": 1,
        "repairs": 0,
        "latency_s": usage["latency_s"],
        "trace_id": row["trace_id"],
    } | {name: usage[name] for name in usage.keys() - _USAGE}


_USAGE = {
    *("model", "stop_reason", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
    *("cost_usd", "reused", "attempts", "repairs", "latency_s", "trace_id"),
}


def test_an_answer_of_the_wrong_shape_is_sent_back_with_what_is_wrong(deployment, ask):
    deployment.server.fail(kind="wrong_shape", times=2)
    ran = ask(inputs={"letter": PLAIN}, output_type=SCHEMA)
    assert ran.xcom() == {"amount": 7.0}
    usage = ran.xcom(key="llm_usage")
    assert (usage["repairs"], usage["attempts"]) == (2, 3)
    assert [row["purpose"] for row in deployment.calls] == ["answer", "repair", "repair"]
    assert "'amount' is a required property" in json.dumps(sent(deployment)["messages"][-1])


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize(("output_type", "content"), [(None, "Über $7."), (SCHEMA, '{"amount":7.0}')])
def test_the_answer_may_be_written_instead(deployment, ask, where, output_type, content):
    if where == "memory":
        attach(protocol="memory", conn_id=None, fs=MemoryFileSystem())
    location = (
        str(deployment.folder / "new" / "answer.txt") if where == "local" else "memory://answers/new/a.txt"
    )
    deployment.server.reply(text=content)
    ran = ask(output=location, output_type=output_type)
    assert (ran.state, ran.xcom()) == ("success", location), ran.log
    path = ObjectStoragePath(location) if where == "memory" else ObjectStoragePath(f"file://{location}")
    assert path.read_bytes().decode() == content


def test_an_answer_that_would_be_written_nowhere_certain_is_not_asked_for(deployment, ask):
    ran = ask(output="{{ 'answers/1.txt' }}")  # a literal one is an error of the DAG file
    assert ran.state == "failed"
    assert "output= is not valid, it is of type str: it is relative" in ran.log
    assert deployment.server.seen == 0


def test_a_template_in_output_names_the_run(deployment, ask):
    ran = ask(output=f"{deployment.folder}/{{{{ run_id }}}}.txt")
    assert ran.xcom() == f"{deployment.folder}/{ran.run_id}.txt"


def test_an_answer_too_long_for_an_xcom_says_how_to_get_it_and_is_not_paid_again(deployment):
    deployment.server.reply(text="📄" * 251_000)
    asking = {"prompt": "All of it.", "request": RequestFields(max_tokens=64_000), "retries": 2}
    ran = deployment.run(a_dag(**asking))
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert "Give the task output= a path or URL to write it to, and clear the task" in ran.log
    dag = a_dag(output=str(deployment.folder / "answer.txt"), **asking)
    again = deployment.clear(ran, dag)
    assert again.xcom() == str(deployment.folder / "answer.txt"), again.log
    assert len((deployment.folder / "answer.txt").read_text()) == 251_000
    assert deployment.server.invoice.paid == 1


# What is asked.


@pytest.mark.parametrize("given", ["literal", "xcom"])
def test_inputs_are_data_as_they_are(deployment, given):
    rows = [{"text": LETTER, "n": 1}]
    with DAG("inputs", schedule=None) as dag:
        export = Export(value=rows)
        inputs = {"rows": export.output, "letter": Export(value=LETTER, task_id="letter").output}
        if given == "literal":  # typed by the author: its strings are templates, those in lists too
            inputs = {"rows": [{"text": "$7"}], "letter": "{{ 3 + 4 }}"}
        ClaudeOperator(task_id="read", prompt="What is owed?", model="fast", inputs=inputs)
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    *blocks, prompt = sent(deployment)["messages"][0]["content"]
    assert prompt["text"] == "What is owed?"
    assert [(block["type"], block["title"]) for block in blocks] == [
        ("document", "rows"),
        ("document", "letter"),
    ]
    texts = [block["source"]["data"] for block in blocks]
    if given == "xcom":
        assert json.loads(texts[0]) == rows
        assert texts[1] == LETTER
    else:
        assert texts[1] == "7"
    assert "Signed March" not in json.dumps(ran.rendered(), default=str)
    assert "Signed March" not in ran.log


def test_content_blocks_go_as_they_are(deployment, ask):
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
    pdf = base64.b64encode(b"%PDF-1.4\n/Type /Page\n%%EOF").decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png}}
    scan = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": pdf}}
    ran = ask(inputs={"photo": image, "scan": scan})
    assert ran.state == "success", ran.log
    assert sent(deployment)["messages"][0]["content"][:2] == [image, scan]
    assert png not in json.dumps(ran.rendered(), default=str)


def test_messages_continue_a_conversation(deployment, ask):
    turns = [{"role": "user", "content": "I am Ada."}, {"role": "assistant", "content": "Hello, Ada."}]
    ask(messages=turns, prompt="Who am I?")
    asked = sent(deployment)["messages"]
    assert [turn["role"] for turn in asked] == ["user", "assistant", "user"]
    assert asked[2]["content"][-1]["text"] == "Who am I?"


def test_what_the_messages_api_takes_reaches_it(deployment, ask):
    ran = ask(
        system="You know {{ params.law }}.",
        params={"law": "Swiss law"},
        request=RequestFields(
            effort="low",
            max_tokens=2_000,
            thinking={"type": "enabled", "budget_tokens": 1_024},
            stop_sequences=["STOP"],
            metadata={"user_id": "u-1"},
            extra_body={"service_tier": "standard_only"},
        ),
    )
    assert ran.state == "success", ran.log
    request = sent(deployment)
    assert request["system"][0]["text"] == "You know Swiss law."
    assert request["output_config"]["effort"] == "low"
    assert request["max_tokens"] == 2_000
    assert request["thinking"] == {"type": "enabled", "budget_tokens": 1_024}
    assert request["stop_sequences"] == ["STOP"]
    assert request["metadata"] == {"user_id": "u-1"}
    assert request["service_tier"] == "standard_only"


def test_a_long_answer_is_streamed_and_comes_to_the_same(deployment, ask):
    ran = ask(inputs={"letter": "We owe you $7.00."}, request=RequestFields(max_tokens=30_000))
    assert sent(deployment)["stream"] is True
    assert ran.xcom() == "We owe you $7.00."


# The decorator.


def test_what_a_decorated_function_returns_is_never_rendered(deployment):
    with DAG("decorated", schedule=None, params={"who": "Ada"}) as dag:

        @task.claude(model="fast", system="Be kind to {{ params.who }}.")
        def read(who, letter):
            return f"{who} wrote: {letter}"

        read("{{ params.who }}", Export(value=LETTER).output)
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    request = sent(deployment)
    assert request["messages"][0]["content"][-1]["text"] == f"Ada wrote: {LETTER}"
    assert request["system"][0]["text"] == "Be kind to Ada."
    assert "Signed March" not in json.dumps(ran.rendered(), default=str)
    assert "Signed March" not in ran.log.replace(str(ran.xcom()), "")


def test_a_decorated_function_can_be_mapped(deployment):
    with DAG("mapped", schedule=None) as dag:

        @task.claude(model="fast")
        def read(n):
            return f"What is {n}?"

        read.expand(n=[1, 2])
    ran = deployment.run(dag)
    assert [ran.xcom(map_index=n) for n in range(2)] == ["What is 1?", "What is 2?"]


def test_a_decorator_has_no_prompt_argument(airflow_home):
    with DAG("both", schedule=None):
        made = task.claude(prompt="Hello?", task_id="read")(lambda: "Hello!")
        with pytest.raises(TypeError, match="prompt= is what the function returns"):
            made()


# Validators, cascades, fallbacks.


def test_a_validators_complaint_is_sent_back(deployment, ask):
    deployment.server.reply(data={"amount": -7.0}, times=1)
    ran = ask(
        inputs={"letter": PLAIN},
        output_type=SCHEMA,
        validators=[lambda debt: "An amount is not below zero." if debt["amount"] < 0 else None],
    )
    assert ran.xcom() == {"amount": 7.0}
    assert "An amount is not below zero." in json.dumps(sent(deployment)["messages"])


def test_a_business_error_fails_at_once(deployment, ask):
    def within_reason(debt):
        if debt["amount"] > 5:
            raise BusinessError("We never owe more than $5.")

    ran = ask(inputs={"letter": PLAIN}, output_type=SCHEMA, validators=[within_reason], retries=2)
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert "AirflowFailException: one.read: BusinessError: We never owe more than $5." in ran.log
    assert len(deployment.calls) == 1


@pytest.mark.parametrize(
    ("cheap", "asked"),
    [
        ({"answer": "$7", "confidence": 0.9}, [FAST]),
        ({"answer": "$7?", "confidence": 0.3}, [FAST, STRONG]),
        ({"answer": 7}, [FAST, STRONG]),
    ],
    ids=["sure", "unsure", "invalid"],
)
def test_a_cascade_asks_the_next_model_where_the_first_will_not_do(deployment, ask, cheap, asked):
    deployment.server.reply(data=cheap, model=FAST)
    deployment.server.reply(data={"answer": "$7", "confidence": 0.8}, model=STRONG)
    schema = Sure.model_json_schema()
    ran = ask(
        model=None,
        route=Route(models=["fast", "strong"], min_confidence=0.7),
        output_type=schema,
        on_invalid=OnInvalid(max_repairs=0),
    )
    assert ran.state == "success", ran.log
    assert [row["model"] for row in deployment.calls] == asked
    assert [row["purpose"] for row in deployment.calls] == ["answer", "escalation"][: len(asked)]
    assert ran.xcom()["answer"] == "$7"
    assert ran.xcom(key="llm_usage")["model"] == asked[-1]


def test_another_model_answers_when_the_first_can_not_be_had(deployment, ask):
    deployment.server.fail(529, model=FAST)
    ran = ask(route=Route(fallbacks=["strong"], retry={"overloaded": {"attempts": 1}}))
    assert ran.state == "success", ran.log
    assert ran.xcom(key="llm_usage")["model"] == STRONG
    assert [(row["model"], row["state"]) for row in deployment.calls] == [
        (FAST, "failed"),
        (STRONG, "settled"),
    ]


def test_another_connection_answers_when_the_first_can_not_be_had(deployment, ask):
    # The same server by another name: another endpoint, on the same invoice.
    deployment.connect(
        "elsewhere", host=deployment.server.url.replace("127.0.0.1", "localhost"), key="sk-other-4712"
    )
    deployment.server.fail(500, matching=lambda question: question.key_last4 != "4712")
    ran = ask(route=Route(fallbacks=["conn:elsewhere"], retry={"server": {"attempts": 1}}))
    assert ran.state == "success", ran.log
    assert [row["state"] for row in deployment.calls] == ["unproven", "settled"]  # a 500 may have been billed
    assert {line.key_last4 for line in deployment.server.invoice.lines} == {"4712"}


def test_a_refusal_falls_back_where_the_author_says_so(deployment, ask):
    deployment.server.fail(kind="refusal", model=FAST)
    assert ask(route=Route(fallbacks=["strong"])).state == "failed"
    ran = ask(route=Route(fallbacks=["strong"], fall_back_on=["refusal"]), name="other")
    assert ran.xcom(key="llm_usage")["model"] == STRONG


# Long inputs.


def test_an_input_too_long_to_be_read_at_once_fails_before_anything_is_sent(deployment, ask):
    ran = ask(inputs={"letter": PLAIN * 20}, long_input=LongInput(max_input_tokens=300), retries=2)
    assert (ran.state, ran.ti().try_number, deployment.server.seen) == ("failed", 1, 0)
    assert "long_input='map_reduce'" in ran.log


@pytest.mark.parametrize("too_long", ["truncate", "map_reduce"])
def test_a_long_input_is_read_as_the_author_says(deployment, ask, too_long):
    letter = "\n\n".join(f"Section {n}. We owe you ${n}.00." for n in range(60))
    ran = ask(
        inputs={"letter": letter},
        output_type=list[float],
        long_input=LongInput(max_input_tokens=300, too_long=too_long),
    )
    assert ran.state == "success", ran.log
    read = [request["messages"][0]["content"][0]["source"]["data"] for request in deployment.server.requests]
    if too_long == "truncate":
        assert len(read) == 1
        assert letter.startswith(read[0])
    else:
        assert len(read) > 2
        assert all(any(f"${n}.00" in part for part in read) for n in range(60))


# Whose answers are taken.


@pytest.mark.parametrize(("reuse", "paid"), [("run", 1), ("always", 1), ("never", 2)])
def test_a_clear_takes_what_reuse_allows(deployment, reuse, paid):
    ran = deployment.run(a_dag(reuse=reuse))
    again = deployment.clear(ran, a_dag(reuse=reuse))
    assert again.state == "success", again.log
    assert deployment.server.invoice.paid == paid
    assert again.xcom(key="llm_usage")["reused"] is (paid == 1)


@pytest.mark.parametrize(("reuse", "paid"), [("run", 2), ("always", 1), ("never", 2)])
def test_another_run_takes_what_reuse_allows(deployment, reuse, paid):
    for _ in range(2):
        assert deployment.run(a_dag(reuse=reuse)).state == "success"
    assert deployment.server.invoice.paid == paid


@pytest.mark.parametrize("reuse", ["run", "always", "never"])
def test_a_retry_continues_from_what_is_paid(deployment, reuse):
    deployment.server.fail(kind="wrong_shape", times=1)
    deployment.server.fail(500, matching="was not valid", times=1)
    route = Route(retry={"server": {"attempts": 1}})
    asking = {"inputs": {"letter": PLAIN}, "output_type": SCHEMA, "route": route}
    ran = deployment.run(a_dag(reuse=reuse, retries=1, **asking))
    assert (ran.state, ran.ti().try_number) == ("success", 2), ran.log
    states = [(row["purpose"], row["state"], row["try_number"]) for row in deployment.calls]
    assert states == [("answer", "settled", 1), ("repair", "unproven", 1), ("repair", "settled", 2)]


def test_another_version_is_asked_anew(deployment):
    for version in ("1", "2"):
        deployment.run(a_dag(reuse="always", version=version))
    assert deployment.server.invoice.paid == 2


# Errors by class.

AT_ONCE = {"attempts": 2, "first_wait_s": 0, "max_wait_s": 0}


@pytest.mark.parametrize(
    ("kind", "fault", "sends", "said"),
    [
        ("network", {"kind": "drop"}, 4, "NetworkError"),
        ("rate_limit", {"status": 429}, 4, "RateLimited"),
        ("overloaded", {"status": 529}, 4, "Overloaded"),
        ("server", {"status": 500}, 4, "ServerError"),
        ("bad_request", {"status": 400}, 2, "BadRequest: HTTP 400 invalid_request_error"),
        ("auth", {"status": 401}, 2, "AuthenticationFailed: HTTP 401 authentication_error"),
        ("spend_limit", {"status": 402}, 2, "SpendLimitReached: "),
        (
            "spend_limit",
            {"status": 429, "error_code": "enforced_spend_limit_reached"},
            2,
            "Raise it in the Claude Console",
        ),
        ("too_long", {"status": 413}, 2, "TooLong: HTTP 413"),
        ("refusal", {"kind": "refusal"}, 2, "Refused: The model refused to answer"),
        ("truncation", {"kind": "max_tokens"}, 2, "Truncated: "),
        ("truncation", {"kind": "model_context_window_exceeded"}, 2, "Truncated: "),
        ("truncation", {"kind": "pause_turn"}, 2, "Truncated: "),
        ("invalid_output", {"kind": "wrong_shape"}, 2, "InvalidOutput: "),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)[:14],
)
def test_each_class_of_error_is_tried_as_its_policy_says_and_told_to_airflow(
    deployment, ask, kind, fault, sends, said
):
    deployment.server.fail(**fault)
    ran = ask(inputs={"letter": PLAIN}, output_type=SCHEMA, retries=1, route=Route(retry={kind: AT_ONCE}))
    may_get_better = kind in ("network", "rate_limit", "overloaded", "server")
    assert ran.state == "failed"
    assert ran.ti().try_number == (2 if may_get_better else 1)
    assert len(deployment.calls) == sends  # two in each try
    assert said in ran.log
    assert ("AirflowFailException: one.read: " in ran.log) is not may_get_better
    assert deployment.key not in ran.log
    assert ran.xcom() is None


def test_a_ledger_that_can_not_be_used_fails_at_once_and_nothing_is_sent(deployment, ask):
    (deployment.folder / "damaged.db").write_text("This is no database. " * 500)
    deployment.connect(ledger_url=f"sqlite:///{deployment.folder}/damaged.db")
    ran = ask(retries=1)
    assert (ran.state, ran.ti().try_number, deployment.server.seen) == ("failed", 1, 0)
    assert "AirflowFailException: one.read: LedgerUnusable: " in ran.log


@pytest.mark.parametrize("error", [RateLimited, Overloaded])
def test_airflow_waits_as_long_as_the_api_asked(error):
    asked = error("Later.", retry_after_s=30.0)
    wrapped = RuntimeError("in a group")
    wrapped.__cause__ = asked
    for exception in (asked, wrapped):
        decision = ClaudeRetryPolicy().evaluate(exception, 1, 3)
        assert 30 <= decision.retry_delay.total_seconds() <= 33
        assert decision.reason == f"{error.kind}: the API asked for 30 s"


def test_airflow_waits_as_the_task_says_when_the_api_did_not():
    for exception in (NetworkError("Gone."), RateLimited("Later."), ValueError("Ours.")):
        assert ClaudeRetryPolicy().evaluate(exception, 1, 3).retry_delay is None


@pytest.mark.parametrize(
    ("retry", "said"),
    [
        ({"rate_limits": {"attempts": 3}}, "no class of error 'rate_limits'"),
        ({"network": {"tries": 3}}, "tries"),
    ],
)
def test_a_policy_that_does_not_exist_is_an_error_of_the_dag_file(airflow_home, retry, said):
    with pytest.raises(ValueError, match=said):
        a_dag(route=Route(retry=retry))
    with pytest.raises(ValueError, match=said):
        ClaudeOperator.partial(task_id="read", route=Route(retry=retry))


# The key.


@pytest.mark.parametrize("status", [None, 400, 401])
def test_the_key_is_nowhere_but_in_the_request(deployment, ask, status):
    if status:
        deployment.server.fail(status, message=f"you sent x-api-key {deployment.key[:12]}…")
    ran = ask(inputs={"letter": PLAIN})
    said = ran.log + json.dumps([ran.xcom(), ran.xcom(key="llm_usage"), ran.rendered()], default=str)
    assert deployment.key not in said
    assert deployment.key.encode() not in (deployment.folder / "ledger.db").read_bytes()


def test_a_deferrable_function_with_outlets_asks_in_its_worker(deployment):
    from airflow.sdk import DAG, Asset, task

    with DAG("outlets", schedule=None) as dag:

        @task.claude(deferrable=True, model="fast", outlets=[Asset("letters")])
        def letter() -> str:
            return "Write a letter."

        letter()
    ran = deployment.run(dag)
    assert ran.state == "success"
    assert "runs in a worker although deferrable=true: it has outlets" in ran.log.lower()


def test_a_deferred_function_whose_connection_is_missing_says_so(deployment):
    def make():
        with DAG("nowhere", schedule=None) as dag:

            @task.claude(deferrable=True, claude_conn_id="claude_elsewhere")
            def letter():
                return "Write a letter."

            letter()
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    assert desk.states() == {"letter": "deferred"}
    assert desk.trigger().states() == {"letter": "failed"}
    assert "AirflowNotFoundException: There is no connection 'claude_elsewhere'" in desk.log


def test_a_file_the_author_names_is_read_as_a_document(deployment):
    path = deployment.inbox / "contract.txt"
    path.write_text("{{ 1/0 }} Signed on March 4, 2026.")
    ran = deployment.run(asking(inputs={"contract": path}))
    assert ran.state == "success", ran.log
    block = deployment.server.requests[-1]["messages"][0]["content"][0]
    assert block["source"]["data"] == "{{ 1/0 }} Signed on March 4, 2026."


def test_nothing_connects_to_an_object_store_when_the_dag_is_parsed():
    asking(inputs={"contract": ObjectStoragePath("s3://nowhere@bucket/contract.txt")})


def test_a_file_outside_the_roots_is_not_read(deployment):
    path = deployment.folder / "secret.txt"
    path.write_text("secret")
    ran = deployment.run(asking(inputs={"contract": path}, roots=[str(deployment.inbox)]))
    assert ran.state == "failed"
    assert deployment.server.seen == 0


def asking(**arguments):
    from airflow.sdk import DAG

    from airflow_llm_provider.operators.claude import ClaudeOperator

    with DAG("asking_with_files", schedule=None) as dag:
        ClaudeOperator(task_id="ask", prompt="When was it signed?", model="fast", **arguments)
    return dag


def test_rows_with_a_field_called_source_are_data_and_no_content_blocks(deployment):
    rows = [{"type": "document", "source": "web"}, {"type": "document", "source": "mail"}]
    ran = deployment.run(asking(inputs={"rows": rows, "row": rows[0]}))
    assert ran.state == "success", ran.log
    blocks = deployment.server.requests[-1]["messages"][0]["content"]
    assert [block.get("title") for block in blocks[:2]] == ["rows", "row"]


def test_a_file_in_a_mapped_task_needs_roots(deployment):
    from airflow.sdk import DAG

    from airflow_llm_provider.operators.claude import ClaudeOperator

    path = deployment.inbox / "contract.txt"
    path.write_text("Signed.")
    with DAG("mapped_files", schedule=None) as dag:
        ClaudeOperator.partial(task_id="ask", prompt="Signed?", model="fast").expand(
            inputs=[{"contract": path}]
        )
    assert deployment.run(dag).state == "failed"
    assert deployment.server.seen == 0
