"""Documents out of input files: text, JSONL (plain or compressed), parquet and Arrow.

Nothing is dropped silently: every document that cannot be used is counted under its reason. A file that cannot be
read to its end stops the run.
"""

from data_prep.readers.documents import InvalidDocument, RawDocument, read_documents
from data_prep.readers.extents import Extent, Inspection, inspect_input
from data_prep.readers.messages import Conversation

__all__ = ["Conversation", "Extent", "Inspection", "InvalidDocument", "RawDocument", "inspect_input", "read_documents"]
