"""Shapes of DAGs with branches; each is a function of what makes the branching task: `choose(task_id, choice)`."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import TaskGroup, TriggerRule, task_group


def empty(task_id: str, **how: Any) -> EmptyOperator:
    return EmptyOperator(task_id=task_id, **how)


def plain(choose: Any) -> None:
    choose("route", "b") >> [empty("a"), empty("b"), empty("c")]


def chains(choose: Any) -> None:
    route = choose("route", "a")
    route >> empty("a") >> empty("a2")
    route >> empty("b") >> empty("b2")


def an_empty_branch(choose: Any) -> None:
    route, join = choose("route", "join"), empty("join", trigger_rule="none_failed_min_one_success")
    route >> empty("a") >> join
    route >> join


def a_branch_that_leads_to_another(choose: Any) -> None:
    route, join = choose("route", "a"), empty("join", trigger_rule="none_failed_min_one_success")
    route >> empty("a") >> join
    route >> [join, empty("b")]


def a_group(choose: Any) -> None:
    route = choose("route", "g")
    with TaskGroup("g") as g:
        empty("x") >> empty("z")
        empty("y")
    route >> [g, empty("b")]


def past_a_group(choose: Any) -> None:
    route = choose("route", "b")
    with TaskGroup("g") as g:
        empty("x") >> empty("z")
    route >> [g, empty("b")]


def nested_groups(choose: Any) -> None:
    route = choose("route", "outer")
    with TaskGroup("outer") as outer:
        with TaskGroup("inner"):
            empty("x") >> empty("y")
        empty("z")
    with TaskGroup("other") as other:
        empty("x")
    route >> [outer, other]


def an_inner_group(choose: Any) -> None:
    route = choose("route", "outer.inner")
    with TaskGroup("outer"):
        with TaskGroup("inner") as inner:
            empty("x") >> empty("y")
        z = empty("z")
    route >> [inner, z]


def inside_a_group(choose: Any) -> None:
    with TaskGroup("g"):
        choose("route", "g.b") >> [empty("a"), empty("b")]


def nested_branches(choose: Any) -> None:
    route, inner, join = (
        choose("route", "inner"),
        choose("inner", "d"),
        empty("join", trigger_rule="one_success"),
    )
    route >> [empty("a"), inner]
    inner >> [empty("c"), empty("d")] >> join


def a_nested_branch_not_taken(choose: Any) -> None:
    route, inner = choose("route", "a"), choose("inner", "d")
    route >> [empty("a"), inner]
    inner >> [empty("c"), empty("d")]


def joins(choose: Any) -> None:
    a, b = empty("a"), empty("b")
    choose("route", "a") >> [a, b]
    for rule in TriggerRule:
        if rule != TriggerRule.ALL_DONE_SETUP_SUCCESS:
            [a, b] >> empty(f"join_{rule}", trigger_rule=rule)


def nothing(choose: Any) -> None:
    a, b = empty("a"), empty("b")
    choose("route", []) >> [a, b] >> empty("join", trigger_rule="none_failed")


def many(choose: Any) -> None:
    a, b, c = empty("a"), empty("b"), empty("c")
    choose("route", ["a", "c"]) >> [a, b, c] >> empty("join", trigger_rule="none_failed_min_one_success")


def many_with_a_group(choose: Any) -> None:
    with TaskGroup("g") as g:
        empty("x") >> empty("y")
    choose("route", ["a", "g"]) >> [empty("a"), empty("b"), g]


def a_mapped_group(choose: Any) -> None:
    @task_group
    def each(n: int) -> None:
        choose("route", "each.b") >> [empty("a"), empty("b")]

    each.expand(n=[1, 2])


SHAPES = [
    *(plain, chains, an_empty_branch, a_branch_that_leads_to_another, a_group, past_a_group, nested_groups),
    *(an_inner_group, inside_a_group, nested_branches, a_nested_branch_not_taken, joins, nothing, many),
    *(many_with_a_group, a_mapped_group),
]
