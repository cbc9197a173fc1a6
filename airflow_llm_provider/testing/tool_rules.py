"""The rules of tool use: what the API rejects in `tools`, `tool_choice` and the order of calls and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from airflow_llm_provider.testing.wire import ApiError


def check_tools(body: Mapping[str, Any]) -> None:
    """Raise ApiError 400 when a request breaks the rules of tool use; with the API's own text where it is known."""
    names = _check_definitions(body.get("tools") or ())
    choice = body.get("tool_choice") or {}
    if choice and not names:
        raise ApiError(400, "tool_choice: tool_choice may only be specified while providing `tools`.")
    if choice.get("type") == "tool" and choice.get("name") not in names:
        raise ApiError(400, f"tool_choice.name: Tool '{choice.get('name')}' not found in provided tools")
    if _check_turns(body["messages"]) and not names:
        raise ApiError(
            400,
            "Requests which include `tool_use` or `tool_result` blocks must define tools: tools is empty.",
        )


def _check_definitions(tools: Sequence[Any]) -> list[str]:
    names = []
    for position, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise ApiError(400, f"tools.{position}.custom.name: Field required")
        names.append(tool["name"])
        if tool.get("type") not in (None, "custom"):  # the API's own tools have no schema
            continue
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            raise ApiError(400, f"tools.{position}.custom.input_schema: Field required")
        if schema.get("type") != "object":
            raise ApiError(400, f"tools.{position}.custom.input_schema.type: Input should be 'object'")
    if len(set(names)) < len(names):
        raise ApiError(400, "tools: Tool names must be unique.")
    return names


def _check_turns(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Compare each call with the results in the next message; tell whether there are any calls or results."""
    called: list[str] = []
    seen: set[str] = set()
    found = False
    for position, turn in enumerate(messages):
        blocks = [] if isinstance(turn["content"], str) else turn["content"]
        # Only results at the start of a message count: the API wants them before any text.
        leading = [
            block.get("tool_use_id")
            for block in takewhile(lambda block: block["type"] == "tool_result", blocks)
        ]
        _check_answered(called, leading if turn["role"] == "user" else [], position - 1)
        for at, block in enumerate(blocks):
            where = f"messages.{position}.content.{at}"
            _check_role(block, turn["role"], where)
            if block["type"] == "tool_result" and block.get("tool_use_id") not in called:
                raise ApiError(
                    400,
                    f"{where}: unexpected `tool_use_id` found in `tool_result` blocks: {block.get('tool_use_id')}. "
                    "Each `tool_result` block must have a corresponding `tool_use` block in the previous message.",
                )
        called = [_checked_id(block, position) for block in blocks if block["type"] == "tool_use"]
        if len(set(called)) < len(called) or seen & set(called):
            raise ApiError(400, f"messages.{position}: `tool_use` ids must be unique")
        seen.update(called)
        found = found or bool(called) or bool(leading)
    _check_answered(called, [], len(messages) - 1)
    return found


def _check_answered(called: Sequence[str], answered: Sequence[Any], position: int) -> None:
    if missing := [use for use in called if use not in answered]:
        raise ApiError(
            400,
            f"messages.{position}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the next "
            "message.",
        )
    for use in called:
        if answered.count(use) > 1:
            raise ApiError(
                400,
                f"messages.{position + 1}: each tool_use must have a single result. Found multiple `tool_result` "
                f"blocks with id: {use}",
            )


def _check_role(block: Mapping[str, Any], role: str, where: str) -> None:
    wanted = {"tool_use": "assistant", "tool_result": "user"}.get(block["type"], role)
    if role != wanted:
        raise ApiError(400, f"{where}: `{block['type']}` blocks can only be in `{wanted}` messages")


def _checked_id(block: Mapping[str, Any], position: int) -> str:
    if not isinstance(block.get("id"), str):
        raise ApiError(400, f"messages.{position}: tool_use.id: Field required")
    if not isinstance(block.get("name"), str):
        raise ApiError(400, f"messages.{position}: tool_use.name: Field required")
    if not isinstance(block.get("input"), dict):
        raise ApiError(400, f"messages.{position}: tool_use.input: Input should be a valid dictionary")
    return str(block["id"])
