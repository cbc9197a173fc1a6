"""LLMBranchOperator: the branch of a DAG that Claude chooses."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import SkipMixin
from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider import _airflow
from airflow_llm_provider.approvals.retries import with_retries
from airflow_llm_provider.argument_checks import require_choice
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.hooks import downstream
from airflow_llm_provider.hooks.arguments import require_text
from airflow_llm_provider.hooks.branches import Branch, offered, require_downstream
from airflow_llm_provider.hooks.claude import BudgetNeedsPerson
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.options import OnInvalid, Route
from airflow_llm_provider.tools import by_name

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import MappedOperator
    from airflow.sdk.types import Operator

    from airflow_llm_provider.approvals.branch import BranchReview
    from airflow_llm_provider.hooks.branching import Decision, OnUnsure, Proposal, Rules
    from airflow_llm_provider.hooks.question import Question

RECORD = "llm_branch"
"""The XCom that says what was proposed and what was decided."""

_NOT_ARGUMENTS = {
    "output_type": "the answer is a choice among the branches",
    "output": "the answer is a choice among the branches",
}


class LLMBranchOperator(ClaudeOperator, SkipMixin):
    """Let Claude choose which of the tasks downstream run; the others are skipped, as by `@task.branch`.

    The other arguments are those of ClaudeOperator. Validators get an answer with `choice`, `reason` and `confidence`;
    tools must be free of effects that cannot be undone or need approval. Beside `llm_usage` there is an XCom
    `llm_branch`: what was proposed, why, how sure and by which measure, what was decided and why. A wrong key, an
    unknown model or a spent budget never leads to the default branch: the task fails.

    Args:
        prompt: what to decide, typed by the DAG author; Airflow templates work here. The data to decide on is `inputs`.
        branches: ids of tasks or task groups directly downstream, each with a description for the model, or with a
            Branch(description, min_confidence=…); None: all that are directly downstream, described by their `doc_md`
            or `doc`. No templates.
        multiple: choose every branch that fits, or none, instead of one.
        default_branch: taken when the model cannot be reached, and where `on_unsure` says so: an id, several, or [] for
            none of them.
        votes: how many independent answers are asked for, at once. With 1 the confidence is the one that the model
            states. With more, the choice of the most votes is taken, and the confidence is their share of all votes; a
            vote that is invalid or refused agrees with no other.
        on_unsure: what happens with a choice below `route.min_confidence`, and with an answer that is invalid or
            refused: `default` takes the default branch, `ask` lets one of the `reviewers` choose, without a worker
            while it waits, `fail` fails without a retry. None: `default` where there is a default branch, else `fail`.
        deferrable: must be False: a branch is chosen in a worker.

    Raises:
        AirflowFailException: no retry can help.
        LLMError: a retry may help.
    """

    runs_in_worker: ClassVar[bool] = True
    # Without it the scheduler would not look for the decision when a skipped task is cleared, and would run the task.
    inherits_from_skipmixin = True

    def __init__(
        self,
        *,
        prompt: str,
        branches: Mapping[str, str | Branch] | None = None,
        multiple: bool = False,
        default_branch: str | Sequence[str] | None = None,
        votes: int = 1,
        on_unsure: OnUnsure | None = None,
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        own = {"branches": branches, "multiple": multiple, "default_branch": default_branch}
        self.require_arguments(
            {**kwargs, **own, "votes": votes, "on_unsure": on_unsure, "deferrable": deferrable}
        )
        super().__init__(
            prompt=prompt,
            deferrable=False,
            **with_retries(kwargs, asks=self.may_ask({"on_unsure": on_unsure})),
        )
        self.branches = branches
        self.multiple = multiple
        self.default_branch = default_branch
        self.votes = votes
        self.on_unsure: OnUnsure = on_unsure or ("fail" if default_branch is None else "default")

    @classmethod
    def require_arguments(cls, arguments: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError, when the DAG is parsed, for arguments that are not valid."""
        super().require_arguments(arguments)
        _require_branch_arguments(arguments)

    @classmethod
    def may_ask(cls, arguments: Mapping[str, Any]) -> bool:
        """Tell whether a person may be asked, as far as the arguments say when the DAG is parsed."""
        return arguments.get("on_unsure") == "ask" or super().may_ask(arguments)

    @classmethod
    def start_mapped_in_triggerer(cls, task: MappedOperator) -> None:
        """Check a mapped task once the DAG is complete; all its instances run in workers."""
        super().start_mapped_in_triggerer(task)
        _airflow.when_complete(task, lambda: cls._prepare(task))

    def resolve_template_files(self) -> None:
        """Prepare what depends on the tasks downstream; Airflow calls this when the DAG is complete."""
        super().resolve_template_files()
        if self.get_dag() is not None:
            self._prepare(self)

    @staticmethod
    def _prepare(task: Operator) -> None:
        downstream.require_skippable(task, task.downstream_list, or_fail=False)
        downstream.keep_skipped(task)

    def execute(self, context: Context) -> Any:
        """Ask, decide, keep the reason, and skip the branches that were not chosen."""
        branches = self._offered()
        proposed = self._proposed(branches, context)
        decision = self._rules(branches).decide(proposed)
        record = _record(proposed)
        if decision.outcome == "ask":
            decision = self._ask_person(decision, record, branches, context)
        # A model that cannot be reached may answer a retry, so its error keeps its class. An unsure choice is in the
        # ledger, where a retry would find the same, so the task fails for good.
        if decision.outcome == "failed":
            context["ti"].xcom_push(key=RECORD, value={**record, **decision.record()})
            where = f"{self.dag_id}.{self.task_id}"
            unsure = AirflowFailException(
                f"{where}: {decision.why}. With on_unsure= a default_branch is taken instead, or a person is asked."
            )
            raise self.hook.for_airflow(proposed, context) if isinstance(proposed, LLMError) else unsure
        return self._take(decision, record, context)

    def resume_after_choice(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on with what a person chose."""
        from airflow_llm_provider.approvals.review import take_answer

        branches = self._offered()
        record = context["ti"].xcom_pull(key=RECORD, map_indexes=context["ti"].map_index)
        # From what was shown, and not made again: inputs and confidence may have changed since.
        asked = self._branch_review(record, record.pop("asked"), branches)
        answer = take_answer(asked.review(), event, hook=self.hook, context=context)
        return self._take(asked.decided(answer), record, context)

    def _take(self, decision: Decision, record: Mapping[str, Any], context: Context) -> Any:
        """Keep what was decided, and skip the other branches."""
        level = logging.WARNING if decision.outcome == "default" else logging.INFO
        taken = list(decision.taken)
        said = f"{decision.outcome.capitalize()}: {', '.join(taken) or 'none'}"
        self.log.log(level, "%s; %s", said, decision.why)
        context["ti"].xcom_push(key=RECORD, value={**record, **decision.record()})
        # Last, because it raises where there is something to skip.
        downstream.skip_all_except(context, taken)
        return taken if self.multiple or len(taken) != 1 else taken[0]

    def _offered(self) -> dict[str, Branch]:
        """Return the branches there are; the DAG is complete only now, and nothing is paid yet."""
        try:
            require_downstream(self, self._default or ())
            return offered(self, self.branches)
        except ValueError as error:
            raise AirflowFailException(f"{self.dag_id}.{error}") from None

    def _proposed(self, branches: Mapping[str, Branch], context: Context) -> Proposal | LLMError:
        """Ask, and return what the model says, or why it says nothing that could be used."""
        from airflow_llm_provider.hooks.answers import USAGE
        from airflow_llm_provider.hooks.branching import choosing

        require_text(self.task_id, "prompt", self.prompt)
        descriptions = {name: branch.description for name, branch in branches.items()}
        question = choosing(self.question, descriptions, multiple=self.multiple)
        try:
            proposed = self.hook.run(self._ask(question, context), context)
        except BudgetNeedsPerson as needed:
            raise self.ask_for_budget(needed, context) from None
        # Pushed here because what follows may fail, park the task or skip, each by an exception; the calls are paid
        # for.
        if usage := _usage(proposed):
            context["ti"].xcom_push(key=USAGE, value=usage)
        return proposed

    async def _ask(self, question: Question, context: Context) -> Proposal | LLMError:
        from airflow_llm_provider.hooks.answers import cost_line, keep_savings
        from airflow_llm_provider.hooks.branching import propose

        options = self.options
        # With votes, min_confidence is for their share: a single vote below it does not escalate.
        route = options.route if self.votes == 1 else dataclasses.replace(options.route, min_confidence=None)
        options = dataclasses.replace(options, route=route)
        async with self.hook.open_engine(options, context, own_loop=True) as engine:
            scope = self.hook.scope(context, options)
            proposed = await propose(engine, question, options, scope, votes=self.votes)
            if not isinstance(proposed, LLMError):
                await keep_savings(engine, proposed.replies, scope, options)
            self.log.info("%s", await cost_line(engine, scope))
            return proposed

    def _rules(self, branches: Mapping[str, Branch]) -> Rules:
        from airflow_llm_provider.hooks.branching import Rules

        bars = {name: branch.min_confidence for name, branch in branches.items()}
        return Rules(
            min_confidence=Route.of(self.route).min_confidence,
            bars={name: bar for name, bar in bars.items() if bar is not None},
            default=self._default,
            on_unsure=self.on_unsure,
        )

    @property
    def _default(self) -> tuple[str, ...] | None:
        given = self.default_branch
        return (given,) if isinstance(given, str) else None if given is None else tuple(given)

    def _ask_person(
        self, decision: Decision, record: dict[str, Any], branches: Mapping[str, Branch], context: Context
    ) -> Decision:
        """Park until a person has chosen; return what was chosen before, since the last clear."""
        from airflow_llm_provider.approvals.branch import content_of
        from airflow_llm_provider.approvals.review import ask

        descriptions = {name: branch.description for name, branch in branches.items()}
        content = content_of(
            decision, record, question=self.prompt, inputs=self.inputs, branches=descriptions
        )
        # What is shown is kept with the task: a decorated function is not called again when the task resumes.
        context["ti"].xcom_push(key=RECORD, value={**record, **decision.record(), "asked": content})
        asked = self._branch_review(record, content, branches)
        answer = ask(asked.review(), hook=self.hook, context=context, resume="resume_after_choice")
        return asked.decided(answer)

    def _branch_review(
        self, record: Mapping[str, Any], content: Mapping[str, Any], branches: Mapping[str, Branch]
    ) -> BranchReview:
        from airflow_llm_provider.approvals.branch import BranchReview

        return BranchReview(
            task=f"{self.dag_id}.{self.task_id}",
            content=content,
            branches=list(branches),
            proposed=tuple(record.get("proposed", ())),
            default=self._default,
            multiple=self.multiple,
            reviewers=self.options.reviewers,
        )


def _record(proposed: Proposal | LLMError) -> dict[str, Any]:
    """Return the part of the XCom `llm_branch` that says what was proposed, and what that cost."""
    record = {} if isinstance(proposed, LLMError) else proposed.record()
    return {**record, "cost_usd": _usage(proposed).get("cost_usd")}


def _usage(proposed: Proposal | LLMError) -> dict[str, Any]:
    """Return what asking took; empty where the model could not be reached."""
    return dict(getattr(proposed, "usage", {}))


def _require_branch_arguments(given: Mapping[str, Any]) -> None:
    """Raise ValueError for arguments with which no branch can be chosen."""
    for name, reason in _NOT_ARGUMENTS.items():
        if given.get(name) is not None:
            raise ValueError(f"LLMBranchOperator takes no {name}=: {reason}.")
    if OnInvalid.of(given.get("on_invalid")).then != "fail":
        raise ValueError(
            "LLMBranchOperator takes no on_invalid.then=: on_unsure= says what happens with an invalid answer."
        )
    if (on_unsure := given.get("on_unsure")) is not None:
        require_choice("on_unsure", on_unsure, ("default", "ask", "fail"))
    if given.get("deferrable"):
        raise ValueError(
            "LLMBranchOperator takes no deferrable=True: what it skips is skipped by the worker that runs it."
        )
    for tool in by_name(given.get("tools") or ()).values():
        if tool.irreversible or tool.needs_approval:
            raise ValueError(
                f"LLMBranchOperator takes no tool like {tool.name!r}, which is irreversible or needs approval: a "
                "choice has no effects. Give it to the task of a branch."
            )
    default = given.get("default_branch")
    if on_unsure == "default" and default is None:
        raise ValueError("on_unsure='default' needs a default_branch=.")
    ids = [default] if isinstance(default, str | None) else default
    if not isinstance(ids, Collection) or not all(isinstance(each, str | None) for each in ids):
        raise ValueError(f"default_branch={default!r}: give the id of a task or group, or several.")
    if len(ids) > 1 and not given.get("multiple"):
        raise ValueError(f"default_branch={default!r}: several branches need multiple=True.")
    if (branches := given.get("branches")) is not None:
        if not isinstance(branches, Mapping) or not all(isinstance(name, str) for name in branches):
            raise ValueError("branches= should be a dict: a description, or a Branch, for each id.")
        for branch in branches.values():
            if not isinstance(branch, (str, Branch)):
                raise ValueError("branches= should be a dict: a description, or a Branch, for each id.")
