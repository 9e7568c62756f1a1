"""Feast's entities, views and services, generated from the contexts.yaml of `$RECMETA_WORKSPACE`.

Feast's command line reads every global of this file that is one of its objects. Nothing is declared by
hand here: edit contexts.yaml.
"""

from __future__ import annotations

import os

from recmeta.contexts import load_contexts
from recmeta.features.feast_definitions import definitions
from recmeta.settings import load_settings

_settings = load_settings(os.environ["RECMETA_WORKSPACE"])
globals().update(
    {
        f"{type(made).__name__.lower()}_{made.name}": made
        for made in definitions(_settings, load_contexts(_settings.contexts_file))
    }
)
