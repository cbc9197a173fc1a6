"""LLMBranchOperator: the branch of a DAG that Claude chooses."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BranchMixIn
from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.hooks.arguments import SHARE, require
from airflow_llm_provider.hooks.files import with_files_read
from airflow_llm_provider.hooks.rendered import require_text
from airflow_llm_provider.operators.branches import (
    RECORD,
    SETTINGS,
    Branch,
    offered,
    require_downstream,
    use_branch_settings,
)
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.tools import by_name

if TYPE_CHECKING:
    from airflow.sdk import BaseNotifier, Context

    from airflow_llm_provider.approvals.branch import BranchReview
    from airflow_llm_provider.approvals.review import User
    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.hooks.choice import Decision, OnUnsure, Proposal, Rules

__all__ = ["Branch", "LLMBranchOperator", "use_branch_settings"]

_NOT_ARGUMENTS = {
    "output_type": "the answer is a choice among the branches",
    "output": "the answer is a choice among the branches",
    "on_exhausted": "on_unsure= says what becomes of an invalid answer",
    "default": "on_unsure= says what becomes of an invalid answer, and default_branch= what is taken then",
    "dead_letters": "on_unsure= says what becomes of an invalid answer",
}


class LLMBranchOperator(ClaudeOperator, BranchMixIn):
    """Let Claude choose which of the tasks downstream run; the others are skipped, as by `@task.branch`.

    prompt: what to decide, typed by the DAG author; Airflow templates work here. What it is decided on goes
        into `inputs`, as data.
    branches: ids of tasks or task groups directly downstream, each with a description for the model, or with a
        Branch(description, min_confidence=…, settings=…); None: all that are directly downstream, described by
        their `doc_md` or `doc`. No templates.
    multiple: choose every branch that fits, or none, instead of one.
    default_branch: taken when the model can't be reached, and where `on_unsure` says so: an id, several, or []
        for none of them.
    min_confidence: a choice below it is unsure, from 0 to 1; a branch may have a bar of its own. Where several
        branches are proposed, the highest of their bars counts.
    votes: how many independent answers are asked for, at once. With 1 the confidence is the one that the model
        states. With more, the choice that most of them make is taken, and the confidence is the share of all
        votes that make it; a vote that is invalid or refused agrees with nobody.
    on_unsure: what becomes of an unsure choice, and of an answer that is invalid or refused: `default` takes the
        default branch, `review` lets a person choose, without a worker while it waits, `fail` fails without a
        retry. None: `default` where there is a default branch, else `fail`.
    assigned_users: of a review: who may choose, as ApprovalSensor takes them.
    response_timeout: of a review: how long it waits; then the default branch is taken, or the task fails.
    notifiers: of a review: called before the wait, as ApprovalSensor calls them.
    deferrable: must be False: a branch is chosen in a worker.

    The other arguments are those of ClaudeOperator; validators get an answer with `choice`, `reason` and
    `confidence`, and tools must have no effects that can't be undone or need approval. Skipping, trigger rules and
    what a clear does are Airflow's own. Beside `llm_usage` there are two XComs: `llm_branch` (what was proposed,
    why, how sure and by which measure, what was done and why) and `llm_branch_settings` (the settings of the branch
    taken; with `multiple`, of each by its id). Raises AirflowFailException for what no retry can mend; a wrong key,
    an unknown model or a spent budget is never answered with the default branch.
    """

    starts_in_worker: ClassVar[bool] = True
    inherits_from_skipmixin = True

    def __init__(
        self,
        *,
        prompt: str,
        branches: Mapping[str, str | Branch] | None = None,
        multiple: bool = False,
        default_branch: str | Sequence[str] | None = None,
        min_confidence: float | None = None,
        votes: int = 1,
        on_unsure: OnUnsure | None = None,
        assigned_users: Sequence[str | User] = (),
        response_timeout: dt.timedelta | None = None,
        notifiers: BaseNotifier | Sequence[BaseNotifier] = (),
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        own: dict[str, Any] = {"branches": branches, "multiple": multiple, "default_branch": default_branch}
        own |= {"votes": votes, "on_unsure": on_unsure, "deferrable": deferrable}
        own |= {"assigned_users": assigned_users, "response_timeout": response_timeout}
        self.require_sound({**kwargs, **own, "min_confidence": min_confidence})
        super().__init__(prompt=prompt, min_confidence=min_confidence, deferrable=False, **kwargs)
        self.branches = branches
        self.multiple = multiple
        self.default_branch = default_branch
        self.votes = votes
        self.on_unsure: OnUnsure = on_unsure or ("fail" if default_branch is None else "default")
        self.assigned_users = assigned_users
        self.response_timeout = response_timeout
        self.notifiers = notifiers

    @classmethod
    def require_sound(cls, arguments: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError, when the DAG is parsed, for arguments that can't be meant."""
        super().require_sound(arguments)
        _require_choice(arguments)

    def execute(self, context: Context) -> Any:
        """Ask, decide, write down why, and skip what was not chosen."""
        branches = self._offered()
        proposed = self._proposed(branches, context)
        decision = self._rules(branches).decide(proposed)
        record = _record(proposed)
        if decision.outcome == "review":
            decision = self._ask_person(decision, record, branches, context)
        if decision.outcome == "failed":
            context["ti"].xcom_push(key=RECORD, value={**record, **decision.record()})
            where = f"{self.dag_id}.{self.task_id}"
            unsure = AirflowFailException(
                f"{where}: {decision.why}. With on_unsure= a default_branch is taken instead, or a person asked."
            )
            raise self.hook.for_airflow(proposed, context) if isinstance(proposed, LLMError) else unsure
        return self._take(decision, record, branches, context)

    def resume_review(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Go on with what a person chose."""
        from airflow_llm_provider.approvals.review import decision

        branches = self._offered()
        record = context["ti"].xcom_pull(key=RECORD, map_indexes=context["ti"].map_index)
        asked = self._branch_review(record, record.pop("asked"), branches)
        answer = decision(asked.review(), event, hook=self.hook, context=context)
        return self._take(asked.decided(answer), record, branches, context)

    def _take(
        self, decision: Decision, record: Mapping[str, Any], branches: Mapping[str, Branch], context: Context
    ) -> Any:
        """Write down what was decided, and skip the rest."""
        level = logging.WARNING if decision.outcome == "default" else logging.INFO
        taken = list(decision.taken)
        said = f"{decision.outcome.capitalize()}: {', '.join(taken) or 'none'}"
        self.log.log(level, "%s; %s", said, decision.why)
        settings = {name: branches.get(name, Branch()).written_settings() for name in decision.taken}
        context["ti"].xcom_push(key=RECORD, value={**record, **decision.record()})
        context["ti"].xcom_push(
            key=SETTINGS, value=settings if self.multiple else next(iter(settings.values()), {})
        )
        return self.do_branch(context, taken if self.multiple or len(taken) != 1 else taken[0])

    def _offered(self) -> dict[str, Branch]:
        """Return the branches there are; the DAG is complete only now, and nothing is paid yet."""
        try:
            require_downstream(self, self._default or ())
            return offered(self, self.branches)
        except ValueError as error:
            raise AirflowFailException(f"{self.dag_id}.{error}") from None

    def _proposed(self, branches: Mapping[str, Branch], context: Context) -> Proposal | LLMError:
        """Ask, and return what the model says, or why it says nothing that could be used."""
        from airflow_llm_provider.engine.bill import bill
        from airflow_llm_provider.hooks.call import Call
        from airflow_llm_provider.hooks.choice import choosing, propose

        require_text(self.task_id, "prompt", self.prompt)
        files = with_files_read(self.inputs, roots=self.allowed_roots, typed=self._typed_files)
        # With votes the bar is for their share: it is not what escalates one of them to the next model.
        min_confidence = self.min_confidence if self.votes == 1 else None
        call = choosing(
            Call.of({**self.arguments(), "inputs": files, "min_confidence": min_confidence}),
            {name: branch.description for name, branch in branches.items()},
            multiple=self.multiple,
        )
        settings = self.hook.all_settings(call.routing)
        scope = self.hook.scope(context, tuple(self.tags))

        async def work(engine: Engine) -> Proposal | LLMError:
            proposed = await propose(engine, call, settings, scope, votes=self.votes)
            self.log.info("%s", await bill(engine, scope))
            return proposed

        proposed = self.hook.run(work, context=context)
        if usage := _usage(proposed):
            context["ti"].xcom_push(key="llm_usage", value=usage)
        return proposed

    def _rules(self, branches: Mapping[str, Branch]) -> Rules:
        from airflow_llm_provider.hooks.choice import Rules

        bars = {name: branch.min_confidence for name, branch in branches.items()}
        return Rules(
            min_confidence=self.min_confidence,
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
        """Park until a person has chosen; returns what was chosen before in this going of the task."""
        from airflow_llm_provider.approvals.branch import content_of
        from airflow_llm_provider.approvals.review import park

        descriptions = {name: branch.description for name, branch in branches.items()}
        content = content_of(
            decision, record, question=self.prompt, inputs=self.inputs, branches=descriptions
        )
        # What is shown is kept with the task: a decorated function is not called again when the task resumes.
        context["ti"].xcom_push(key=RECORD, value={**record, **decision.record(), "asked": content})
        asked = self._branch_review(record, content, branches)
        answer = park(
            asked.review(),
            hook=self.hook,
            context=context,
            resume="resume_review",
            notifiers=self.notifiers,
        )
        return asked.decided(answer)

    def _branch_review(
        self, record: Mapping[str, Any], content: Mapping[str, Any], branches: Mapping[str, Branch]
    ) -> BranchReview:
        from airflow_llm_provider.approvals.branch import BranchReview

        return BranchReview(
            place=f"{self.dag_id}.{self.task_id}",
            content=content,
            branches=list(branches),
            proposed=tuple(record.get("proposed", ())),
            default=self._default,
            multiple=self.multiple,
            response_timeout=self.response_timeout,
            assigned_users=self.assigned_users,
        )


def _record(proposed: Proposal | LLMError) -> dict[str, Any]:
    """Return the part of the XCom `llm_branch` that says what was proposed, and what that cost."""
    record = {} if isinstance(proposed, LLMError) else proposed.record()
    return {**record, "cost_usd": _usage(proposed).get("cost_usd")}


def _usage(proposed: Proposal | LLMError) -> dict[str, Any]:
    """Return what asking took; nothing is known of it where the model can't be had."""
    return dict(getattr(proposed, "usage", {}))


def _require_choice(given: Mapping[str, Any]) -> None:
    """Raise ValueError for what a choice among branches can't be made of."""
    for name, reason in _NOT_ARGUMENTS.items():
        if given.get(name) not in (None, "fail"):  # `fail` is the default of on_exhausted
            raise ValueError(f"LLMBranchOperator takes no {name}=: {reason}.")
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
    default, on_unsure = given.get("default_branch"), given.get("on_unsure")
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
        for name, branch in branches.items():
            try:
                Branch.of(branch).written_settings()
            except ValueError as error:
                raise ValueError(f"branches[{name!r}]: {error}") from None
            require(f"branches[{name!r}]: min_confidence", SHARE, Branch.of(branch).min_confidence)
