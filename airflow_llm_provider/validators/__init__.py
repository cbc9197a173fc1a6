"""Validators: what an answer must satisfy besides its shape, as plain functions, and a judge.

A validator is a function of the answer that returns None, or a complaint: a plain string, or a `Complaint`,
which says which fields are at fault and whether the document is needed to put them right. One with a second
parameter named `source` is given the text that was asked about.

The functions here return validators. They look at the answer as plain JSON data, at paths such as
`items.*.amount`: names of fields, numbers of list items, `*` for each. A name with a dot in it can't be said. What
is null, or not there, is passed over: whether it may be is the output type's to say.
"""

from airflow_llm_provider.validators.complaint import Complaint, Judge, Validator
from airflow_llm_provider.validators.content import (
    adds_up,
    dates_between,
    length_between,
    quotes_in_source,
    refers_to,
    written_in,
)
from airflow_llm_provider.validators.personal_data import no_personal_data

__all__ = [
    "Complaint",
    "Judge",
    "Validator",
    "adds_up",
    "dates_between",
    "length_between",
    "no_personal_data",
    "quotes_in_source",
    "refers_to",
    "written_in",
]
