"""What a collection was built with: decided by embedder, splitter and analyzer together."""

from __future__ import annotations

from ingest.chunk import splitter_name
from rag.analyze import ANALYZER_VERSION
from rag.config import Settings
from rag.models import embedding_dimension
from rag.token_vectors import CODE_NAME
from rag.types import IndexFingerprint


def index_fingerprint(settings: Settings) -> IndexFingerprint:
    """The fingerprint that these settings give; loads no weights. Raises ModelError."""
    embedder = settings.embedder
    return IndexFingerprint(
        model=embedder.model,
        dimension=embedding_dimension(embedder, settings.cache_dir),
        normalized=True,
        query_prefix=embedder.query_prefix,
        passage_prefix=embedder.passage_prefix,
        splitter=splitter_name(settings.chunk, embedder.languages),
        analyzer=ANALYZER_VERSION,
        token_vectors=CODE_NAME if embedder.token_vectors else "",
    )
