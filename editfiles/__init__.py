"""The files of edits that people have, read one record at a time: the one reader of all rooms.

The kind of a file is seen from its content: JSON Lines, a JSON array, a JSON object that holds one
list, or CSV as Excel writes it; the fields may be ours or those of CounterFact, zsRE, EasyEdit and
KnowEdit.
"""

from editfiles.problems import FileProblem, Place
from editfiles.raw import Raw, read_raw
from editfiles.records import Record, read_records, to_record

__all__ = ["FileProblem", "Place", "Raw", "Record", "read_raw", "read_records", "to_record"]
