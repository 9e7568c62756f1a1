"""Every outer aggregation joins training: it learns, and resumes with all that it remembers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learnable_rows import TINY, contents, train_killed_once, train_tiny
from safetensors.torch import load_file

from recmeta.meta.outer.registry import OUTER
from recmeta.settings import TrainingSettings


def settings(outer: str, **changes: object) -> TrainingSettings:
    return TINY.model_copy(update={"outer": outer, "max_steps": 20, "check_every": 3, **changes})


@pytest.mark.parametrize("outer", sorted(OUTER))
def test_it_learns_and_killed_in_mid_epoch_ends_as_if_never_stopped(outer: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    report = train_tiny(tmp_path / "straight", settings(outer))
    assert report.best_step > 0
    assert report.validation_loss < 0.69
    torch.manual_seed(2)
    told = train_killed_once(tmp_path / "killed", settings(outer), at=10)
    assert told[0] == 10  # the checkpoint was written at step 9
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_contexts_are_told_apart_although_their_ids_are_hidden(tmp_path: Path) -> None:
    report = train_tiny(tmp_path, settings("by_size", unknown_share=0.95))
    assert report.best_step > 0


@pytest.mark.parametrize("learner", ["joint", "maml"])
def test_outer_aggregations_change_what_any_meta_learner_ends_in(learner: str, tmp_path: Path) -> None:
    ends = {}
    for outer in ("mean", "by_size", "pcgrad"):
        train_tiny(tmp_path / outer, settings(outer, meta_learner=learner, max_steps=10))
        ends[outer] = load_file(tmp_path / outer / "model.safetensors")["weights.layer0_weight"]
    assert not torch.equal(ends["mean"], ends["by_size"])
    assert not torch.equal(ends["mean"], ends["pcgrad"])
