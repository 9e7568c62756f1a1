"""Every backbone is trained and adapted, under joint training and under MAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from learnable_rows import TINY, TINY_LATER, TINY_ROWS, train_tiny

from recmeta.adaptation import adapt
from recmeta.model_folder import load_model
from recmeta.models.adapters import check_adapter
from recmeta.models.backbones.registry import BACKBONES


@pytest.mark.parametrize("learner", ["joint", "maml"])
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_it_learns_and_contexts_adapt_to_it(backbone: str, learner: str, tmp_path: Path) -> None:
    given = TINY.model_copy(
        update={
            "backbone": backbone, "meta_learner": learner, "max_steps": 20, "check_every": 10,
            "adapt_steps": 20, "adapt_rate": 3e-2, "adapt_proximal": 1.0,
        }
    )  # fmt: skip
    report = train_tiny(tmp_path, given)
    assert report.best_step > 0
    assert report.validation_loss < 0.69
    model = load_model(tmp_path)
    assert model.shape.backbone == backbone
    fits = adapt(model, TINY_ROWS, TINY_LATER, [1, 3], given)
    assert fits[3].gain > 0
    for fit in fits.values():
        check_adapter(fit.tensors, model.adapter_shapes)
