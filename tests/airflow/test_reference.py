"""The reference says what the code does: every argument is described, and the page is up to date."""

import importlib.util
from pathlib import Path

GENERATE = Path(__file__).parents[2] / "docs" / "reference" / "generate.py"


def test_the_reference_of_the_operators_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", GENERATE)
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text() == generate.page(), "run: python docs/reference/generate.py"
