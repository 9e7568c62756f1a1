"""Vocabularies number ids once and for all."""

from __future__ import annotations

import numpy as np
import pytest

from recmeta.episodes.vocabulary import Vocabulary
from recmeta.errors import InputError


def test_unknown_ids_have_index_zero_and_known_ones_start_at_one() -> None:
    vocabulary = Vocabulary(("a", "b"))
    assert vocabulary.encode(["b", "x", "a", ""]).tolist() == [2, 0, 1, 0]
    assert vocabulary.encode([]).dtype == np.int64
    assert vocabulary.table_size == 3


def test_lists_are_cut_and_padded_to_the_width() -> None:
    vocabulary = Vocabulary(("a", "b"))
    assert vocabulary.encode_lists([["a", "b", "a"], [], ["x"]], 2).tolist() == [[1, 2], [0, 0], [0, 0]]


def test_an_extended_vocabulary_keeps_earlier_indices() -> None:
    earlier = Vocabulary(("m", "c"))
    later = earlier.extended(["z", "c", "a", "a"])
    assert later.ids == ("m", "c", "a", "z")
    assert later.encode(["m", "c"]).tolist() == earlier.encode(["m", "c"]).tolist()


def test_rare_ids_stay_unknown() -> None:
    assert Vocabulary.from_counts(["b", "a", "b", "a", "c"], min_count=2).ids == ("a", "b")


def test_an_id_that_stands_twice_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'a' more than once"):
        Vocabulary(("a", "b", "a"))
