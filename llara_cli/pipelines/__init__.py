"""One job a file, from inputs to a finished artifact or result: for commands and for the Python API alike."""
