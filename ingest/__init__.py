"""Document -> Milvus: load, parse, chunk, embed, publish."""
