"""Counting what an embeddings answer holds: how many vectors, and of what length. The numbers themselves are not kept."""

from __future__ import annotations

from llmsec_tap.dialects.base import JSON
from llmsec_tap.dialects.draft import Draft


def count_vectors(vectors: JSON, draft: Draft) -> None:
    """A list of vectors: lists of numbers, nested lists (one vector a token), or base64 text of 4-byte floats."""
    if not isinstance(vectors, list):
        return
    draft.embeddings = len(vectors)
    if vectors:
        draft.embedding_dimensions = dimensions(vectors[0])


def dimensions(vector: JSON) -> int | None:
    for _ in range(3):  # llama.cpp nests a token's vector once, feature extraction twice
        if isinstance(vector, list) and vector and isinstance(vector[0], list):
            vector = vector[0]
    if isinstance(vector, list):
        return len(vector)
    if isinstance(vector, str):
        return base64_bytes(vector) // 4
    return None


def base64_bytes(text: str) -> int:
    """Decoded size of base64 text, without decoding it."""
    return len(text) * 3 // 4 - (2 if text.endswith("==") else 1 if text.endswith("=") else 0)
