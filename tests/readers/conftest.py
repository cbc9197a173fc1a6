"""How many examples Hypothesis tries."""

import os

from hypothesis import settings

settings.register_profile("readers", max_examples=int(os.environ.get("EXAMPLES", "20")), deadline=None)
settings.load_profile("readers")
