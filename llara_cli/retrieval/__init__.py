"""From vectors to hits: vector store, indexes, ranking, BM25."""
