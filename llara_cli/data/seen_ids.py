"""Finds duplicate ids with about ten bytes per id."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from hashlib import blake2b

_BUCKET_BITS = 14


class SeenIds:
    """A set that keeps a sorted 64-bit hash of each id instead of the id.

    The hashes are in 16,384 short sorted arrays, chosen by their first bits: finding and inserting are one ``bisect``
    and one move of a few kilobytes, and memory stays near 8 bytes per id at all times. A hash table would need a copy
    twice as large each time it grows; a ``set`` of the ids themselves needs ten times as much.

    Two different ids share a hash with a chance of 3 in a million in all of 10 million ids, 3 in ten thousand in all of
    100 million. That is rare, not impossible: when ``add`` returns True, confirm it with the ids themselves.
    """

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(1 << _BUCKET_BITS)]

    def add(self, name: str) -> bool:
        """Add ``name``; return whether it, or another id with its hash, was there already."""
        code = int.from_bytes(blake2b(name.encode("utf-8"), digest_size=8).digest(), "big")
        bucket = self._buckets[code >> (64 - _BUCKET_BITS)]
        place = bisect_left(bucket, code)
        if place < len(bucket) and bucket[place] == code:
            return True
        bucket.insert(place, code)
        return False

    def nbytes(self) -> int:
        """Memory in use."""
        return sum(bucket.__sizeof__() for bucket in self._buckets)
