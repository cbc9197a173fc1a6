"""Load what every call needs before workers fork: a task then costs 0.15 CPU-seconds instead of 1.0.

Airflow runs this file, from the folder `config` of its home, in every component.
"""

import sys

if "celery" in sys.argv or "scheduler" in sys.argv:  # the processes that tasks are forked from
    import aiohttp  # noqa: F401
    import anthropic
    import anthropic.resources.messages  # noqa: F401
    import genai_prices.data_snapshot  # noqa: F401
    import httpx2  # noqa: F401

    import airflow_llm_provider.hooks.question
    import airflow_llm_provider.ledger.ledger
    import airflow_llm_provider.operators.claude  # noqa: F401
