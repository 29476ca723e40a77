"""Reading edit data into one record type."""

from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.datasets.fever import read_fever
from mend_core.datasets.pararel import read_pararel
from mend_core.datasets.readers import read_edits

__all__ = ["Edit", "PromptAnswer", "read_edits", "read_fever", "read_pararel"]
