"""Base models: loading, editable matrices, encoding, prefix cache, overlay, generation."""

from mend_core.models.base import Base, Matrix
from mend_core.models.encode import Encoded, encode_edits, encode_pairs, encode_prompts
from mend_core.models.families import Family
from mend_core.models.generate import greedy
from mend_core.models.load import base_digest, load_base
from mend_core.models.overlay import Overlay, overlay, with_delta, with_pairs
from mend_core.models.prefix import PrefixCache, forward, suffix

__all__ = [
    "Base",
    "Encoded",
    "Family",
    "Matrix",
    "Overlay",
    "PrefixCache",
    "base_digest",
    "encode_edits",
    "encode_pairs",
    "encode_prompts",
    "forward",
    "greedy",
    "load_base",
    "overlay",
    "suffix",
    "with_delta",
    "with_pairs",
]
