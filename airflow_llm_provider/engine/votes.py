"""Votes: ask one question several times at once, and count the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.errors import AnswerError, LLMError, TerminalError

Choice = TypeVar("Choice", bound=Hashable)

# Votes use sample numbers 1,000 apart, so that asking a refused vote again (sample + 1) never meets the next vote.
_SAMPLES_APART = 1_000


@dataclass(frozen=True, kw_only=True)
class Agreement(Generic[Choice]):
    """What most votes say.

    Attributes:
        choice: The choice with the most votes.
        share: Its share of all votes that were asked for, those without an answer included.
        stated: The mean confidence that its votes state.
        voters: The numbers of its votes.
    """

    choice: Choice
    share: float
    stated: float
    voters: Sequence[int]


async def ask_votes(ask: Callable[[int], Awaitable[Reply]], votes: int) -> list[Reply | AnswerError]:
    """Ask a question several times at once, and return the reply or the AnswerError of each vote.

    Args:
        ask: Asks the question as the sample of that number (`Request.sample`).
        votes: How often to ask.

    Raises:
        LLMError: A call failed for another reason, such as a wrong key; a TerminalError before a retryable one. It
            is raised once all calls have ended. Paid answers are in the ledger, and a retry asks only for the rest.
    """
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(_outcome(ask(vote * _SAMPLES_APART))) for vote in range(votes)]
    outcomes = [task.result() for task in asking]
    failures = [
        error for error in outcomes if isinstance(error, LLMError) and not isinstance(error, AnswerError)
    ]
    if failures:
        raise _most_severe(failures)
    return [outcome for outcome in outcomes if isinstance(outcome, Reply | AnswerError)]


def count_votes(votes: Sequence[tuple[Choice, float] | None]) -> Agreement[Choice] | None:
    """Count votes; return None if there are none.

    A tie is decided by the confidence that the votes state, then by which choice came first.

    Args:
        votes: Each a choice with its stated confidence, or None for a vote without an answer.
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
    # Returned, not raised: the TaskGroup would cancel the other votes, which are paid all the same.
    try:
        return await asking
    except LLMError as error:
        return error


def _most_severe(errors: Sequence[LLMError]) -> LLMError:
    return next((error for error in errors if isinstance(error, TerminalError)), errors[0])
