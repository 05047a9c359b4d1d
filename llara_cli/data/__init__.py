"""What users bring: corpora, passages, training rows and test collections, read as streams and checked on the way.

Everything here reads in constant memory, and whatever is wrong with a file is a one-line ``UserError`` that begins with
``file:line`` (``file: row N`` for parquet). Nothing here knows of models: no torch, no transformers.

lines          bytes and text lines of a file, compressed or not
delimited      rows, quotation marks and header lines of .csv and .tsv
records        JSON lines, CSV, TSV and parquet as one stream of named fields
seen_ids       has this id been here before? (about ten bytes an id)
collection     documents and queries to encode; BEIR folders
qrels          relevance judgments
corpus         pre-training corpora: raw documents or ready rows
wiki_dumps     WikiExtractor output and MediaWiki XML dumps
wikitext       MediaWiki markup -> plain text
hub            data sets of the Hugging Face hub, streamed
passages       document -> consecutive passages
table          rows on disk with random access
training_rows  fine-tuning rows: query, positives, negatives
stopwords      the English stop words and how they are dropped
"""
