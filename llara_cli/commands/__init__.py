"""One thin file a verb: parse, call one stage, print."""
