"""Votes: one question asked several times at once, and what most of the answers say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.errors import AnswerError, LLMError, TerminalError

Choice = TypeVar("Choice", bound=Hashable)

# A refused vote may be asked again, as the sample after its own: that must not be its neighbour's.
_SAMPLES_APART = 1_000


@dataclass(frozen=True, kw_only=True)
class Agreement(Generic[Choice]):
    """What most votes say.

    share: of all votes that were asked for, those that ended in no answer included.
    stated: the mean of the confidences that the votes for it state.
    voters: the numbers of those votes.
    """

    choice: Choice
    share: float
    stated: float
    voters: Sequence[int]


async def cast(ask: Callable[[int], Awaitable[Reply]], votes: int) -> list[Reply | AnswerError]:
    """Ask `votes` times at once, and return what each came to: an answer, or why there is none.

    ask: asks the question as the sample of that number (`Request.sample`).
    What is not the answer's fault (the model can't be had, the key is wrong) is raised, the gravest first, once
    all calls have ended: what was paid is in the ledger, and a retry asks only for the rest.
    """
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(_outcome(ask(vote * _SAMPLES_APART))) for vote in range(votes)]
    outcomes = [task.result() for task in asking]
    failures = [
        error for error in outcomes if isinstance(error, LLMError) and not isinstance(error, AnswerError)
    ]
    if failures:
        raise _gravest(failures)
    return [outcome for outcome in outcomes if isinstance(outcome, Reply | AnswerError)]


def count(votes: Sequence[tuple[Choice, float] | None]) -> Agreement[Choice] | None:
    """Count votes, each a choice with its stated confidence, or None where it ended in no answer.

    Equally many votes are parted by the confidence they state, and then by which came first. Returns None
    when no vote was cast.
    """
    tally: dict[Choice, list[int]] = {}
    for number, vote in enumerate(votes):
        if vote is not None:
            tally.setdefault(vote[0], []).append(number)
    if not tally:
        return None

    def stated(voters: Sequence[int]) -> float:
        return sum(vote[1] for number in voters if (vote := votes[number])) / len(voters)

    choice, voters = max(tally.items(), key=lambda item: (len(item[1]), stated(item[1])))
    return Agreement(choice=choice, share=len(voters) / len(votes), stated=stated(voters), voters=voters)


async def _outcome(asking: Awaitable[Reply]) -> Reply | LLMError:
    try:
        return await asking
    except LLMError as error:
        return error


def _gravest(errors: Sequence[LLMError]) -> LLMError:
    return next((error for error in errors if isinstance(error, TerminalError)), errors[0])
