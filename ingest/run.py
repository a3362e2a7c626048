"""`rag ingest` and `rag collections reindex`: the pipelines with the real parts in this process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from tqdm import tqdm

from ingest.copy_chunks import Files, StoredTexts
from ingest.fingerprint import index_fingerprint
from ingest.journal import open_journal
from ingest.pipeline import IngestReport, Progress, ingest_documents
from ingest.prepare import Prepare
from ingest.reindex import ReindexReport, reindex_collection
from ingest.remove import remove_journal
from rag.analyze import analyze
from rag.config import Settings
from rag.connect import open_store
from rag.errors import SettingsError
from rag.language import understands
from rag.models import hide_progress, load_token_counter, locate_model
from rag.step_settings import EmbedderSettings
from rag.types import CountTokens, Embedding

PLAIN_LINE_EVERY_S = 5.0
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} files{postfix}"

ChoosePrepare = Callable[[Settings, CountTokens, Callable[[str], None]], Prepare]


class LazyEmbedder:
    """Loads the model with the first texts: a run that finds nothing new never waits for it."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say

    @cached_property
    def _embedder(self) -> Any:
        self._say(f"loading the embedder {self._settings.embedder.model}")
        # Threads that spin while they wait for each other take the cores from reading and writing: 5 % of a run.
        # Torch's OpenMP reads it when it is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from rag.embed import SentenceEmbedder

        located = locate_model(self._settings.embedder.model, self._settings.cache_dir)
        hide_progress(located)
        return SentenceEmbedder(self._settings.embedder, located)

    def __call__(self, texts: list[str]) -> list[Embedding]:
        embeddings: list[Embedding] = self._embedder.embed_passages(texts)
        return embeddings


class _Stderr:
    """Whatever sys.stderr is at the time: it is another file while Ray runs, and a bar keeps the file it was given."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class Display:
    """A bar on a terminal; elsewhere a plain line now and then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._bar: Any = None
        self._said_at = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if sys.stderr.isatty():
            self._bar = self._bar or tqdm(
                total=progress.files_total, unit=" files", file=_Stderr(), leave=False, bar_format=_BAR
            )
            self._bar.set_postfix_str(describe_progress(progress), refresh=False)
            self._bar.update(progress.files - self._bar.n)
            self._bar.refresh()
        elif time.monotonic() - self._said_at >= PLAIN_LINE_EVERY_S:
            self._said_at = time.monotonic()
            self._say(f"{progress.files} of {progress.files_total} files: {describe_progress(progress)}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def describe_progress(progress: Progress) -> str:
    """For example: 12 documents, 40 pages, 310 chunks, 52 chunks/s, about 2 min 5 s left."""
    words = [f"{progress.documents} documents", f"{progress.pages} pages", f"{progress.chunks} chunks"]
    if progress.chunks:
        words.append(f"{progress.chunks / progress.seconds:.0f} chunks/s")
    if progress.seconds_left is not None:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        words.append(f"about {minutes} min {seconds} s left" if minutes else f"about {seconds} s left")
    return ", ".join(words)


def run_ingest(
    settings: Settings,
    paths: Sequence[str],
    *,
    collection: str,
    acl: Sequence[str],
    metadata: Mapping[str, Any],
    prune: bool,
    choose_prepare: ChoosePrepare,
    say: Callable[[str], None],
) -> IngestReport:
    """Ingests paths into a collection of the settings' store; progress goes to `say` or a bar on stderr.

    `choose_prepare` makes, of the settings and a token counter, what reads the documents. One process at a time ingests
    into a collection: another waits, and says so. Raises StoreUnavailableError,
    IndexMismatchError, ModelError and SettingsError; a document that fails is in the report.
    """
    fingerprint = index_fingerprint(settings)
    count_tokens = load_token_counter(locate_model(settings.embedder.model, settings.cache_dir))
    display = Display(say)
    try:
        with (
            open_store(settings, fingerprint) as store,
            open_journal(settings, collection, say) as journal,
        ):
            return ingest_documents(
                paths,
                store=store,
                journal=journal,
                embed=LazyEmbedder(settings, say),
                analyze=analyze,
                prepare=choose_prepare(settings, count_tokens, say),
                fingerprint=fingerprint,
                settings=settings,
                collection=collection,
                acl=tuple(acl),
                metadata=metadata,
                prune=prune,
                progress=display,
                say=say,
            )
    finally:
        display.close()


def run_reindex(settings: Settings, name: str, *, say: Callable[[str], None]) -> ReindexReport:
    """Brings a collection of the settings' store to the settings' embedder and splitter; progress goes to `say`.

    Raises UnknownCollectionError, StoreUnavailableError and ModelError; a document that cannot be made is reported.
    """
    fingerprint = index_fingerprint(settings)
    count_tokens = load_token_counter(locate_model(settings.embedder.model, settings.cache_dir))
    embed = LazyEmbedder(settings, say)
    cuts = partial(is_cut, settings.embedder, count_tokens)
    done, said_at = 0, time.monotonic()

    def tell(chunks: int) -> None:
        nonlocal done, said_at
        done += chunks
        if time.monotonic() - said_at >= PLAIN_LINE_EVERY_S:
            said_at = time.monotonic()
            say(f"{done} of about {total} chunks")

    with open_store(settings, fingerprint) as store:
        total = sum(document.chunks for document in store.stored_documents(name))
        report = reindex_collection(
            name,
            store=store,
            fingerprint=fingerprint,
            copy_stored=StoredTexts(store, embed, analyze, cuts, settings.ingest.embed_batch, tell),
            copy_files=Files(store, embed, analyze, count_tokens, fingerprint, settings, tell, say),
            drain_s=settings.store.timeout_s,
        )
        if report.texts == "files" and not report.copied.failures:
            _remove_journal_of_making(settings, store.registry.read(name).ready[0].physical, say)
    return report


def _remove_journal_of_making(settings: Settings, physical: str, say: Callable[[str], None]) -> None:
    """The journal that a new version had of its own; from the switch on the collection's tells of its documents."""
    try:
        remove_journal(settings, physical)
    except SettingsError as error:  # the switch is done: a file too many is no failure of it
        say(str(error))


def is_cut(embedder: EmbedderSettings, count_tokens: CountTokens, text: str) -> bool:
    """Whether the embedder leaves out the end of a text that it understands. One that it does not is found by its words
    alone, and may be longer than it reads (ingest.prepare)."""
    return understands(embedder.languages, text) and count_tokens(embedder.passage_prefix + text) > embedder.max_tokens
