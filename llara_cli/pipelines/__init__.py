"""One job per file, from inputs to a finished artifact or result, for the commands and the Python API."""
