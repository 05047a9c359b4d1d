"""The backends that come with llara: training, encoding and indexes.

The program never imports this package: it finds each class through its entry point, the way it finds anyone's. A module
imports its library at the top, so that a library that is missing shows as an ``ImportError`` of that backend alone.
"""
