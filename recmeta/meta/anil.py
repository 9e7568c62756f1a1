"""ANIL: MAML whose inner loop moves the head alone."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from recmeta.meta.interface import Options
from recmeta.meta.maml import Maml


class Anil(Maml):
    """Almost no inner loop (Raghu et al. 2020): the body learns features, the head adapts to a task.

    MAML with ``fast`` set to the names that start with ``head``, unless other names are given.
    """

    name: ClassVar[str] = "anil"

    def __init__(self, options: Options | None = None) -> None:
        """Take the head as what is fast, where ``options`` do not say."""
        options = Options() if options is None else options
        super().__init__(options if options.fast else replace(options, fast=("head",)))
