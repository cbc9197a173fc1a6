"""An error written down is the same error when it is read."""

import pytest

from airflow_llm_provider.errors import BY_KIND, LLMError, RetryableError, error_of, record_of, require_kinds


def all_errors(cls: type[LLMError] = LLMError) -> list[type[LLMError]]:
    return [cls, *(error for child in cls.__subclasses__() for error in all_errors(child))]


@pytest.mark.parametrize("cls", all_errors())
def test_every_error_survives_being_an_event(cls: type[LLMError]) -> None:
    error = cls("why", retry_after_s=7) if issubclass(cls, RetryableError) else cls("why")
    again = error_of(record_of(error))
    assert type(again) is cls
    assert str(again) == "why"
    assert getattr(again, "retry_after_s", None) == getattr(error, "retry_after_s", None)


def test_a_class_of_error_that_is_none_is_named() -> None:
    require_kinds("retry", BY_KIND)
    with pytest.raises(ValueError, match="retry= knows no class of error 'rate_limits'"):
        require_kinds("retry", ["rate_limits"])
