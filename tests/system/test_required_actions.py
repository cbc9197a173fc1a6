"""A person decides on Airflow's own page: approves, edits, rejects with a reason; strangers may not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import httpx2
import pytest

from airflow_llm_provider.testing.processes import free_port, wait_until
from tests.support.airflow import AirflowUnderTest

pytestmark = pytest.mark.system

USERS = {"admin": "admin", "ada": "user", "bob": "user", "eve": "viewer"}
SCREENSHOTS = Path(__file__).with_name("screenshots")  # git-ignored: look at them
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class StaffedAirflow(AirflowUnderTest):
    """An Airflow with users; the tests look after it as its admin."""

    def _log_in(self) -> None:
        self._http.headers["Authorization"] = f"Bearer {self.token('admin')}"

    def token(self, user: str) -> str:
        answer = httpx2.post(
            f"{self.url}/auth/token", json={"username": user, "password": password(user)}, trust_env=False
        )
        return str(answer.raise_for_status().json()["access_token"])

    def try_to_answer(self, user: str | None, dag_id: str, run_id: str, choice: str = "Approve") -> int:
        """Answer through the REST API as `user`, or without a token; return the status."""
        headers = {"Authorization": f"Bearer {self.token(user)}"} if user else {}
        return httpx2.patch(
            f"{self.url}/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/approval/-1/hitlDetails",
            json={"chosen_options": [choice], "params_input": {}},
            headers=headers,
            trust_env=False,
        ).status_code


def password(user: str) -> str:
    return f"a password of {user}"


@dataclass
class Office:
    """A real Airflow, its mail, and people at their browsers."""

    airflow: StaffedAirflow
    browser: Any
    mails: list[Any] = field(default_factory=list)

    def ask(self, dag_id: str) -> str:
        """Start a run, and return its id when its question waits for an answer."""
        run = self.airflow.trigger(dag_id)
        assert wait_until(lambda: self.state(dag_id, run) not in (None, "scheduled", "queued", "running"), 60)
        assert self.state(dag_id, run) == "awaiting_input", self.airflow.log(dag_id, run, "approval")
        return run

    def state(self, dag_id: str, run: str, task_id: str = "approval") -> str | None:
        states = {ti["task_id"]: ti["state"] for ti in self.airflow.task_instances(dag_id, run)}
        return states.get(task_id)

    def sit_down(self, user: str) -> Any:
        """Return a page on which `user` has logged in by the login form."""
        page = self.browser.new_context(viewport={"width": 1280, "height": 1240}).new_page()
        page.goto(f"{self.airflow.url}/auth/login/")
        page.fill("input[name=username]", user)
        page.fill("input[name=password]", password(user))
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url: "/auth/" not in url)
        return page


def open_question(page: Any, url: str) -> Any:
    """Open the page of a decision, and return the Approve button."""
    page.goto(url)
    button = page.get_by_test_id("hitl-option-Approve")
    button.wait_for(timeout=20_000)
    page.wait_for_timeout(1500)  # the editor is loaded after the rest
    return button


def question_url(airflow: AirflowUnderTest, dag_id: str, run: str) -> str:
    return f"{airflow.url}/dags/{dag_id}/runs/{run.replace('+', '%2B')}/tasks/approval/required_actions"


def shoot(page: Any, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    from aiosmtpd.controller import Controller
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("No Chromium on this machine; with Debian's: apt-get install chromium")
    mails: list[Any] = []

    class Keep:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
            mails.append(message_from_bytes(envelope.content, policy=policy.default))
            return "250 kept"

    folder = tmp_path_factory.mktemp("office")
    (folder / "dags").mkdir()
    shutil.copy(Path(__file__).with_name("approvals_dag.py"), folder / "dags" / "approvals.py")
    (folder / "passwords.json").write_text(json.dumps({user: password(user) for user in USERS}))
    post = Controller(Keep(), hostname="127.0.0.1", port=free_port())
    plain = {"disable_ssl": True, "disable_tls": True}
    airflow = StaffedAirflow(
        folder / "home",
        folder / "dags",
        components=("api-server", "scheduler", "dag-processor"),  # no triggerer: nothing needs one
        connections={
            "claude_default": {"conn_type": "claude", "password": "sk-unused", "host": "http://127.0.0.1:9"},
            "smtp_default": {"conn_type": "smtp", "host": "127.0.0.1", "port": post.port, "extra": plain},
        },
        config={
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{u}:{role}" for u, role in USERS.items()),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        },
    )
    post.start()
    try:
        with airflow, sync_playwright() as playwright:
            yield Office(airflow, playwright.chromium.launch(executable_path=chromium, args=QUIET), mails)
    finally:
        post.stop()


def test_a_mail_leads_to_the_page_and_what_is_approved_there_goes_on(office: Office) -> None:
    airflow, run = office.airflow, office.ask("letter")
    assert wait_until(lambda: bool(office.mails), 10)
    mail = office.mails.pop()
    assert mail["subject"] == "Send this letter to Ms. Mill?"
    (url,) = re.findall(r"http://\S+", mail.get_body(("html",)).get_content())

    page = office.sit_down("ada")
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    button = open_question(page, url)
    shoot(page, "letter-asked")
    # The whole text is there as text: no markup of it has worked.
    shown = page.locator("code.language-text, pre code, div code").first.inner_text()
    assert shown.strip() == airflow.xcom("letter", run, "draft").strip()
    assert page.title() != "broken out"
    assert page.get_by_role("link", name="a link").count() == 0
    assert not [address for address in fetched if "stolen" in address]
    button.click()
    assert airflow.wait("letter", run, timeout_s=60) == "success"
    page.reload()
    page.wait_for_timeout(1500)
    shoot(page, "letter-approved")
    assert airflow.xcom("letter", run, "send") == airflow.xcom("letter", run, "draft")
    decision = airflow.xcom("letter", run, "approval")
    assert (decision["status"], decision["decided_by"], decision["feedback"]) == ("approved", "ada", "")
    assert decision["took_s"] > 0


def test_text_that_is_edited_in_the_form_goes_on_as_it_was_typed(office: Office) -> None:
    run = office.ask("letter")
    page = office.sit_down("ada")
    open_question(page, question_url(office.airflow, "letter", run))
    page.locator("#element_content").fill('{"never": "mind"}\n\nYours, Ada\n')
    page.locator("#element_feedback").fill("She has paid.\nSorry!")
    shoot(page, "letter-edited")
    page.get_by_test_id("hitl-option-Approve with changes").click()
    assert office.airflow.wait("letter", run, timeout_s=60) == "success"
    assert office.airflow.xcom("letter", run, "send") == '{"never": "mind"}\n\nYours, Ada\n'
    decision = office.airflow.xcom("letter", run, "approval")
    assert (decision["status"], decision["feedback"]) == ("modified", "She has paid.\nSorry!")


def test_data_that_is_edited_in_the_form_is_checked_when_the_task_resumes(office: Office) -> None:
    airflow, run = office.airflow, office.ask("refund")
    page = office.sit_down("bob")
    for amount, ends in (("4000", "failed"), ("45", "success")):
        open_question(page, question_url(airflow, "refund", run))
        page.locator(".view-line", has_text="amount").click()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")  # before the comma
        for _ in "40":
            page.keyboard.press("Backspace")
        page.keyboard.type(amount)
        shoot(page, f"refund-edited-{amount}")
        page.get_by_test_id("hitl-option-Approve with changes").click()
        assert airflow.wait("refund", run, timeout_s=60) == ends
        if ends == "failed":
            log = airflow.log("refund", run, "approval")
            assert "InvalidOutput: The edit is not valid: amount: Input should be less than or equal" in log
            page.goto("about:blank")
            airflow.clear("refund", run, ["approval"], downstream=True)
            assert wait_until(lambda: office.state("refund", run) == "awaiting_input", 60)
    assert airflow.xcom("refund", run, "send") == {**airflow.xcom("refund", run, "propose"), "amount": 45}
    assert airflow.xcom("refund", run, "approval")["status"] == "modified"


def test_data_that_is_approved_untouched_is_what_it_was(office: Office) -> None:
    run = office.ask("refund")
    page = office.sit_down("bob")
    open_question(page, question_url(office.airflow, "refund", run)).click()
    assert office.airflow.wait("refund", run, timeout_s=60) == "success"
    decision = office.airflow.xcom("refund", run, "approval")
    assert decision["status"] == "approved"  # although the browser writes 40.0 as 40
    assert json.dumps(decision["content"]) == json.dumps(office.airflow.xcom("refund", run, "propose"))


def test_a_rejection_with_its_reason_leads_to_the_other_branch(office: Office) -> None:
    run = office.ask("refund")
    page = office.sit_down("bob")
    open_question(page, question_url(office.airflow, "refund", run))
    page.locator("#element_feedback").fill("She has been paid already.")
    shoot(page, "refund-rejected")
    page.get_by_test_id("hitl-option-Reject").click()
    assert office.airflow.wait("refund", run, timeout_s=60) == "success"
    assert office.state("refund", run, "send") == "skipped"
    assert office.airflow.xcom("refund", run, "redo") == "She has been paid already."


def test_the_question_is_found_on_the_list_of_required_actions(office: Office) -> None:
    run = office.ask("letter")
    page = office.sit_down("ada")
    page.goto(f"{office.airflow.url}/required_actions")
    page.get_by_text("Send this letter to Ms. Mill?").first.wait_for(timeout=30_000)
    shoot(page, "required-actions")
    assert office.airflow.try_to_answer("ada", "letter", run, "Reject") == 200
    assert office.airflow.wait("letter", run, timeout_s=60) == "success"


def test_strangers_and_those_who_were_not_asked_are_refused(office: Office) -> None:
    airflow, run = office.airflow, office.ask("letter")
    page = office.sit_down("bob")
    open_question(page, question_url(airflow, "letter", run)).click()
    page.wait_for_timeout(1500)
    shoot(page, "letter-refused")
    refused = {user: airflow.try_to_answer(user, "letter", run) for user in (None, "eve", "bob", "admin")}
    assert refused == {None: 401, "eve": 403, "bob": 403, "admin": 403}
    assert office.state("letter", run) == "awaiting_input"
    assert airflow.try_to_answer("ada", "letter", run) == 200
    assert airflow.try_to_answer("ada", "letter", run, "Reject") == 409  # decided is decided
    assert airflow.wait("letter", run, timeout_s=60) == "success"
    assert airflow.xcom("letter", run, "approval")["decided_by"] == "ada"
