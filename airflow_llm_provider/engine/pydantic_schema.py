"""The JSON schemas of pydantic types: what a model is asked for, and what rows hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.json_schema import GenerateJsonSchema

from airflow_llm_provider.engine.json_schema import DECIMAL, LOCAL_TIME, MAX_DIGITS, PLACES

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema


class Schemas(GenerateJsonSchema):
    """Makes schemas as pydantic does, except for what it leaves out: decimals, local times, unstated serializers."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """Return a number for an answer, and a text with its digits for a row."""
        made = super().decimal_schema(schema)
        if self.mode == "validation":
            # pydantic says "a number or a text", which the API would count as a union.
            number = next(option for option in made["anyOf"] if option.get("type") == "number")
            return {**number, "format": DECIMAL}
        digits = {MAX_DIGITS: schema.get("max_digits"), PLACES: schema.get("decimal_places")}
        return {
            **made,
            "format": DECIMAL,
            **{name: value for name, value in digits.items() if value is not None},
        }

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        """Return a date and time; in a row, one that never has an offset is told from the others."""
        made = super().datetime_schema(schema)
        is_local = self.mode == "serialization" and schema.get("tz_constraint") == "naive"
        return {**made, "format": LOCAL_TIME} if is_local else made

    def ser_schema(
        self, schema: core_schema.SerSchema | core_schema.IncExSeqSerSchema | core_schema.IncExDictSerSchema
    ) -> JsonSchemaValue | None:
        """Return what a serializer gives: anything, if its function does not state what it returns."""
        made = super().ser_schema(schema)
        # pydantic would name the type of the value before it was serialized.
        return {} if made is None and schema["type"] in ("function-plain", "function-wrap") else made
