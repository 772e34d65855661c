"""Every hard limit on what is read from a file of a cache, in one place.

Parsers import the numbers by name and refuse what is above them before they allocate anything for
it; writers refuse to write what could not be read. ``cachekd limits`` prints `ALL`, and the format
page lists them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: at most ``most`` of what ``what`` says are read."""

    name: str
    most: int
    what: str


_all: list[Limit] = []


def _limit(name: str, most: int, what: str) -> int:
    _all.append(Limit(name, most, what))
    return most


NAME_LENGTH = _limit("name_length", 120, "characters of a component of a file name")
DOCUMENT_BYTES = _limit(
    "document_bytes", 1 << 24, "bytes of a JSON document other than a plan or a seal"
)
LARGE_DOCUMENT_BYTES = _limit("large_document_bytes", 1 << 28, "bytes of a plan or a seal")
DOCUMENT_VALUES = _limit("document_values", 1 << 18, "values of a JSON document, all levels")
LARGE_DOCUMENT_VALUES = _limit("large_document_values", 1 << 22, "values of a plan or a seal")
DOCUMENT_DEPTH = _limit("document_depth", 32, "levels of lists and objects in a JSON document")
HEADER_BYTES = _limit("header_bytes", 1 << 20, "bytes of a safetensors header or a codec header")
HEADER_VALUES = _limit("header_values", 1 << 16, "values of such a header")
TENSORS = _limit("tensors", 1 << 8, "tensors of a safetensors file")
DIMENSIONS = _limit("dimensions", 8, "dimensions of a tensor")
FOOTER_BYTES = _limit("footer_bytes", 1 << 24, "bytes of the footer of a Parquet file")
ROW_GROUPS = _limit("row_groups", 1 << 14, "row groups of a Parquet file")
TABLE_ROWS = _limit("table_rows", 1 << 26, "rows of a Parquet file")
SAMPLES_ROWS = _limit("samples_rows", 1 << 17, "rows of a file of samples or responses")
ROW_TEXT = _limit(
    "row_text", 1 << 12, "bytes of text for each of the rows that a Parquet file may have"
)
ROW_VALUES = _limit(
    "row_values", 1 << 10, "spans or tokens for each of the rows that such a file may have"
)
SHARDS = _limit("shards", 1 << 18, "shards of a kind that a seal or an index names")
UNITS = _limit("units", 1 << 20, "units of a plan")
RUNS = _limit("runs", 1 << 16, "plans that a seal names")
KEYS = _limit("keys", 1 << 31, "keys of an index")
SHARD_BYTES = _limit("shard_bytes", 1 << 40, "bytes of a shard")
TOKENS = _limit("tokens", 1 << 24, "tokens of a document")
ENTRIES = _limit("entries", 1 << 28, "entries (kept token ids) of a document")
VOCABULARY = _limit("vocabulary", 1 << 24, "token ids of a vocabulary")
TEMPERATURES = _limit("temperatures", 64, "temperatures of a capture")
SAMPLES_DRAWN = _limit("samples_drawn", 1 << 20, "draws a row")
FRAME_BYTES = _limit("frame_bytes", 1 << 31, "bytes that one zstd frame unpacks to")
FRAME_WINDOW = _limit(
    "frame_window", 1 << 23, "bytes of the window of a zstd frame that is larger than its content"
)
LAYERS = _limit("layers", 1 << 12, "layers of attention")
HEADS = _limit("heads", 1 << 12, "heads of a layer of attention")
HEAD_WIDTH = _limit("head_width", 1 << 16, "dimensions of a head of attention")
LAYER_WEIGHTS = _limit(
    "layer_weights", 1 << 31, "attention weights of one layer of a document, all heads and rows"
)
CONTEXTS = _limit("contexts", 1 << 12, "contexts of a prior")
LISTED = _limit("listed", 1 << 24, "token ids of all lists of a prior together")
PRIOR_BYTES = _limit("prior_bytes", 1 << 27, "bytes of a prior")
SCORE_BYTES = _limit("score_bytes", 1 << 30, "bytes of a record of a score log")

ALL: tuple[Limit, ...] = tuple(_all)
