"""From vectors to numbers: vector store -> index -> hits -> run -> metrics.

store        embeddings of a collection, on disk
encoding     the stage ``encode``: collection -> vector store
indexing     the stage ``index``: vector store -> index
searching    the stage ``search``: queries -> hits
judged       a test collection: documents, judged queries, judgements
ranking      an index's rows -> ranked document ids
runs         TREC runs and judgements, read and written
measures     how a metric is written, and who computes it
metrics      run + judgements -> numbers, by ir_measures
bm25         the lexical baseline
"""
