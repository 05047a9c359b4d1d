"""What users bring: corpora, passages, training rows and test collections, read as streams and checked on the way.

Everything here reads in constant memory, and mistakes in a file raise a one-line ``UserError`` that begins with
``file:line`` (``file: row N`` for parquet). Nothing here knows of models: no torch, no transformers.
"""
