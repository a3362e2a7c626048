"""Token vectors in few bytes: the form in which an index keeps them, and back.

Unit vectors are turned by one fixed random rotation, which leaves their products as they are and spreads each of their
numbers alike: nearly a normal distribution of variance 1 / dim. Each number is kept as the nearest of 2**BITS levels,
the best ones for that distribution (Max 1960). Nothing is fitted, so that the form suits every model.
`python -m eval.token_vectors` compares forms by their bytes and by what they cost in ranking; its table is in
eval/MEASURED.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

BITS = 2
CODE_NAME = f"rotation-{BITS}"  # part of an index's fingerprint: other bytes for the same vectors need another name

# For a standard normal variable: the levels of least mean square error, and that error.
LEVELS = (-1.510418, -0.452780, 0.452780, 1.510418)
DISTORTION = 0.117482

_SEED = 0
_PER_BYTE = 8 // BITS
_SHIFTS = np.arange(_PER_BYTE, dtype=np.uint8) * BITS


def encode_tokens(vectors: np.ndarray) -> bytes:
    """float32 (tokens, dim), rows of L2 norm 1 -> tokens * ceil(dim * BITS / 8) bytes."""
    return encode_rotated(rotate(vectors)).tobytes()


def encode_rotated(rotated: np.ndarray) -> np.ndarray:
    """What `rotate` gave, (tokens, dim) -> uint8 (tokens, ceil(dim * BITS / 8)), a token's bytes a row."""
    tokens, dimension = rotated.shape
    width = _row_bytes(dimension)
    places = np.zeros((tokens, width * _PER_BYTE), dtype=np.uint8)
    for edge in _edges(dimension):  # a comparison each is a tenth of a search among them
        places[:, :dimension] += rotated > edge
    neighbours = places.reshape(tokens, width, _PER_BYTE)
    packed: np.ndarray = neighbours[:, :, 0].copy()
    for place in range(1, _PER_BYTE):  # a sum over the last axis takes five times as long
        packed |= neighbours[:, :, place] << (place * BITS)
    return packed


def decode_tokens(coded: Sequence[bytes], dimension: int) -> np.ndarray:
    """The vectors of several texts, one text's after the other's: float32 (tokens of all, dim), rotated.

    Their products with a `rotate`d unit vector are the cosines, right on average, so that they may be above 1.
    Together, since a product of many rows takes a fraction of the time of many products. Raises ValueError for what is
    no code of that dimension.
    """
    for one in coded:
        count_coded(one, dimension)
    packed = np.frombuffer(b"".join(coded), dtype=np.uint8)
    vectors = _unpacked(dimension).take(packed).view(np.float32)
    return vectors.reshape(-1, _row_bytes(dimension) * _PER_BYTE)[:, :dimension]


def count_coded(coded: bytes, dimension: int) -> int:
    """How many token vectors these bytes hold. Raises ValueError where they are no code of that dimension."""
    tokens, rest = divmod(len(coded), _row_bytes(dimension))
    if rest:
        raise ValueError(f"{len(coded)} bytes are no token vectors of {dimension} numbers in {BITS} bits each")
    return tokens


def rotate(vectors: np.ndarray) -> np.ndarray:
    """(tokens, dim) as they are compared with decoded ones: a query's, which are not kept, lose nothing."""
    rotated: np.ndarray = vectors @ random_rotation(vectors.shape[1])
    return rotated


@cache
def random_rotation(size: int) -> np.ndarray:
    """float32 (size, size), read only, orthogonal, the same every time."""
    normal = np.random.default_rng(_SEED).standard_normal((size, size))
    directions, triangle = np.linalg.qr(normal)
    rotation = np.asarray(directions * np.sign(np.diag(triangle)), dtype=np.float32)  # a QR's signs are free
    rotation.flags.writeable = False
    return rotation


def _edges(dimension: int) -> np.ndarray:
    """float32 (2**BITS - 1,): between them the numbers that one level stands for."""
    levels = np.array(LEVELS) / np.sqrt(dimension)
    return np.asarray((levels[1:] + levels[:-1]) / 2, dtype=np.float32)


@cache
def _unpacked(dimension: int) -> np.ndarray:
    """(256,): the numbers that each byte stands for, _PER_BYTE float32 in one item, which is quicker to look up.

    The levels are smaller than what they stand for by the distortion, on average over the vectors that share them.
    """
    levels = np.array(LEVELS, dtype=np.float32) / np.float32((1 - DISTORTION) * np.sqrt(dimension))
    places = (np.arange(256, dtype=np.uint8)[:, None] >> _SHIFTS) & (2**BITS - 1)
    return np.ascontiguousarray(levels[places]).view(f"V{4 * _PER_BYTE}")[:, 0]


def _row_bytes(dimension: int) -> int:
    return -(-dimension // _PER_BYTE)
