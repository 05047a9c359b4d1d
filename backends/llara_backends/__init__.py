"""The backends that come with llara: training, encoding and indexes.

llara never imports this package: it finds each class by its entry point, like those of other packages. Modules import
their library at the top, so a missing library is an ``ImportError`` of that backend only.
"""
