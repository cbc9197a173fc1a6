"""Budgets as a DAG author sets them, and what happens to a task for which a budget has no room."""

from __future__ import annotations

import base64
import dataclasses

import pytest
from airflow.sdk import DAG, BaseNotifier
from fpdf import FPDF

from airflow_llm_provider.errors import BudgetWaits
from airflow_llm_provider.hooks.connection import Connection
from airflow_llm_provider.ledger import budgets
from airflow_llm_provider.ledger.budgets import set_budget
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.operators.task import ClaudeRetryPolicy
from airflow_llm_provider.options import Budget, RequestFields
from airflow_llm_provider.triggers.deferral import NeedsWorker, decoded, encode_arguments

# A document costs up to $0.0045, and each answer of the stand-in's less than a tenth of that.
SOME = 0.0060


def standing(deployment, **fields):
    database = Database(deployment.ledger_url)
    database.migrate()
    with database.write() as connection:
        set_budget(connection, budgets.Budget(**{"name": "cap", "scope": "all", "per": "day", **fields}))
    database.close()


def answer_at_length(deployment):
    deployment.server.reply(text="word " * 1_600)  # 2,000 tokens: $0.001


def test_what_is_paid_is_written_the_rest_is_pending_and_a_raised_budget_finishes_it(deployment):
    answer_at_length(deployment)
    documents = deployment.texts(12)
    ran = deployment.ask(documents, budget=Budget(run_usd=SOME), max_in_flight=2)
    assert ran.state == "failed"
    assert ran.outcomes.keys() == {"answered", "pending"}
    answered = ran.outcomes["answered"]
    assert 1 <= answered < 12
    assert len(ran.rows) == answered == deployment.server.invoice.paid
    assert deployment.server.invoice.cost_micro_usd <= SOME * 1e6
    assert f"{12 - answered} of 12 documents are pending. run nightly/{ran.run_id}: up to $0.00" in ran.log
    assert "left in budget 'budget.run_usd'. Nothing was sent; raise budget.run_usd of the task" in ran.log

    again = deployment.clear(ran, deployment.dag(documents=documents, budget=Budget(run_usd=1)))
    assert (again.state, again.outcomes) == ("success", {"reused": answered, "answered": 12 - answered})
    assert deployment.server.invoice.paid == 12


def test_a_budget_that_says_skip_skips_the_task(deployment):
    answer_at_length(deployment)
    ran = deployment.ask(deployment.texts(12), budget=Budget(run_usd=SOME, on_exceeded="skip"), retries=2)
    assert (ran.ti().state, ran.ti().try_number) == ("skipped", 1)
    assert ran.outcomes["pending"] > 0
    assert len(ran.rows) == ran.outcomes["answered"] > 0


def test_a_budget_that_says_wait_asks_for_a_retry_when_its_next_period_begins(deployment):
    standing(deployment, cap_micro_usd=10, on_exceeded="wait")
    ran = deployment.ask(deployment.texts(2))
    assert ran.state == "failed", "there was no retry left"
    assert ran.outcomes == {"pending": 2}
    assert "The next day begins in" in ran.log
    decision = ClaudeRetryPolicy().evaluate(BudgetWaits("", retry_after_s=7_200), 1, 3)
    assert 7_200 <= decision.retry_delay.total_seconds() <= 7_920


def test_every_task_of_a_run_counts_and_default_args_set_them_all(deployment):
    default_args = {
        "budget": Budget(run_usd="0.005"),
        "request": RequestFields(max_tokens=4_000),
        "model": "fast",
    }
    with DAG("calls", schedule=None, default_args=default_args) as dag:
        own = Budget(task_usd=0.004, run_usd="0.005")
        first = ClaudeOperator(task_id="first", prompt="What is owed?", budget=own)
        second = ClaudeOperator(task_id="second", prompt="By whom?")
        long = RequestFields(max_tokens=12_000)
        third = ClaudeOperator(task_id="third", prompt="Since when?", request=long)
        first >> second >> third
    ran = deployment.run(dag)
    states = {name: ran.ti(name).state for name in ("first", "second", "third")}
    assert states == {"first": "success", "second": "success", "third": "failed"}
    assert "calls.third: BudgetExceeded: run calls/" in ran.log


def test_the_configuration_caps_everything(deployment, monkeypatch):
    monkeypatch.setenv("AIRFLOW__LLM__DAY_BUDGET_USD", "0.0001")
    monkeypatch.setenv("AIRFLOW__LLM__BUDGET_TIMEZONE", "Europe/Berlin")
    ran = deployment.ask(deployment.texts(1))
    assert "left in budget 'day_budget_usd'. Nothing was sent; raise [llm] day_budget_usd" in ran.log
    monkeypatch.setenv("AIRFLOW__LLM__DAY_BUDGET_USD", "plenty")
    assert "[llm] day_budget_usd: 'plenty' is not an amount in US dollars" in deployment.ask([]).log
    assert deployment.server.seen == 0


class Told(BaseNotifier):
    """Keeps what it was told."""

    template_fields = ("text",)
    heard: list[str] = []  # noqa: RUF012  # Airflow copies a notifier with its task

    def __init__(self, text):
        super().__init__()
        self.text = text

    def notify(self, context):
        Told.heard.append(self.text)


@pytest.mark.parametrize("given", [list, lambda notifiers: notifiers[0]], ids=["several", "one"])
def test_notifiers_are_told_once_of_50_80_and_95_percent(deployment, given):
    Told.heard.clear()
    answer_at_length(deployment)
    notifier = Told("{{ budget_warning.percent }}% of {{ budget_warning.cap_usd }} in {{ run_id[:6] }}")
    ran = deployment.ask(
        deployment.texts(16),
        budget=Budget(task_usd=0.0168, notifiers=given([notifier])),
        max_in_flight=1,
        request=RequestFields(max_tokens=2_000),
    )
    assert ran.outcomes["answered"] >= 14
    assert [text.split()[0] for text in Told.heard] == ["50%", "80%", "95%"][: len(Told.heard)]
    assert len(Told.heard) >= 2
    assert all("of 0.016800 in manual" in text for text in Told.heard)
    assert "50% of budget 'budget.task_usd' is used" in ran.log


def test_what_a_private_model_costs_is_said_in_the_connection(deployment):
    ask = {"documents": deployment.texts(1), "model": "claude-next-preview", "budget": Budget(run_usd=1)}
    ran = deployment.ask(**ask)
    assert ran.state == "failed"
    assert "claude-next-preview has no known price" in ran.log
    assert deployment.server.seen == 0


def test_own_prices_and_a_discount_are_booked(deployment):
    deployment.connect(prices='{"claude-haiku-5-5": {"input": 1, "output": 2}}', price_change_percent=-50)
    prices = Connection.of(_connection(), "claude_default").endpoint.prices
    assert prices.card("claude-haiku-5-5").tiers[0][1]["cache_write_1h_tokens"] == 2_000_000
    assert prices.card("claude-sonnet-5-5").tiers[0][1]["output_tokens"] == 5_000_000


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"prices": "{"}, "prices is not JSON"),
        ({"prices": {"m": {"input": 1}}}, "prices of m need input and output"),
        ({"prices": {"m": {"input": 1, "output": "x"}}}, "output is 'x'"),
        ({"prices": {"m": {"input": 1, "output": 1, "above": {"x": {}}}}}, "above should be like"),
        ({"price_change_percent": -120}, "a number from -100"),
    ],
)
def test_prices_that_are_wrong_are_named(deployment, fields, complaint):
    deployment.connect(**fields)
    ran = deployment.ask(deployment.texts(1))
    assert complaint in ran.log
    assert "Connection 'claude_default'" in ran.log


def _connection():
    from airflow.sdk.bases.hook import BaseHook

    return BaseHook.get_connection("claude_default")


@pytest.mark.parametrize(
    ("budget", "complaint"),
    [
        (lambda: -1, "budget.task_usd=-1: give an amount in US dollars"),
        (lambda: "much", "budget.task_usd='much': give an amount in US dollars"),
        (lambda: Budget(run_usd="much"), "budget.run_usd='much': give an amount in US dollars"),
        (lambda: Budget(on_exceeded="wait"), "budget.on_exceeded='wait': choose one of fail, skip, ask"),
    ],
)
@pytest.mark.parametrize("operator", [ClaudeOperator, ClaudeDocumentsOperator])
def test_a_budget_with_a_wrong_value_fails_the_parse(operator, budget, complaint):
    needed = {"documents": [], "output": "/tmp/x.jsonl"} if operator is ClaudeDocumentsOperator else {}
    with pytest.raises(ValueError, match=complaint):
        operator(task_id="ask", prompt="What?", **needed, budget=budget())


@pytest.mark.parametrize("budget", ["{{ params.usd }}", "{% if params.usd %}0.0001{% endif %}"])
def test_a_budget_may_come_from_the_form_of_the_run(deployment, budget):
    ran = deployment.run(deployment.dag(documents=deployment.texts(1), params={"usd": 0.0001}, budget=budget))
    assert "of $0.000100 left in budget 'budget.task_usd'" in ran.log


def test_budgets_go_to_the_triggerer_and_notifiers_need_a_worker():
    given = Budget(task_usd=2.5, run_usd="{{ params.cap }}")
    assert decoded(encode_arguments({"budget": given}))["budget"] == dataclasses.replace(given, notifiers=[])
    assert encode_arguments({"budget": 2.5})["budget"] == 2.5
    with pytest.raises(NeedsWorker, match="notifiers"):
        encode_arguments({"budget": Budget(notifiers=[Told("x")])})


def test_a_single_question_reserves_what_its_pages_can_cost(deployment):
    pages = FPDF()
    for _ in range(20):
        pages.add_page()
    data = base64.b64encode(pages.output()).decode()
    source = {"type": "base64", "media_type": "application/pdf", "data": data}
    with DAG("one", schedule=None) as dag:
        ClaudeOperator(
            task_id="read",
            prompt="What is owed?",
            model="fast",
            inputs={"contract": {"type": "document", "source": source}},
            budget=0.01,  # $0.0025 would do for a text
        )
    ran = deployment.run(dag)
    assert ran.state == "failed"
    assert "budget 'budget.task_usd'. Nothing was sent" in ran.log
    assert deployment.server.invoice.paid == 0
