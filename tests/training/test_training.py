"""Training learns, repeats itself bit by bit, and goes on where it was killed."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learnable_rows import QUICK, SHAPE, TINY, contents, make_rows, train_tiny
from pytorch_lightning import Trainer

from recmeta.artifacts import read_json
from recmeta.episodes.sampler import EpisodeSampler
from recmeta.errors import InputError, SchemaError
from recmeta.later_data import Progress, context_losses
from recmeta.meta.outer.registry import get_outer
from recmeta.meta.registry import get_meta_learner
from recmeta.model_folder import load_model
from recmeta.models.prediction import predict_logits
from recmeta.models.shared import SharedModel
from recmeta.settings import TrainingSettings
from recmeta.training import MetaTraining, TrainingReport, train

ROWS = make_rows({1: 600, 2: 200, 3: 200})
LATER = make_rows({1: 200, 2: 100, 3: 100}, seed=1, first_day=40)


def settings(**changes: object) -> TrainingSettings:
    return QUICK.model_copy(update=changes)


def run(folder: Path, given: TrainingSettings, progress: Progress | None = None) -> TrainingReport:
    return train(ROWS, LATER, SHAPE, given, folder, progress=progress)


def test_training_beats_the_base_rate_on_later_data(tmp_path: Path) -> None:
    report = run(tmp_path, settings(max_steps=200))
    base = [
        -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        for rate in (float(LATER.of_context(context).label.mean()) for context in (1, 2, 3))
    ]
    assert report.context_losses.keys() == {1, 2, 3}
    assert report.context_losses[1] < 0.8 * base[0]
    assert report.validation_loss < 0.85 * sum(base) / 3
    assert context_losses(load_model(tmp_path), LATER) == report.context_losses


def test_another_seed_ends_elsewhere(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path / str(seed), settings(seed=seed, max_steps=20))
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "01")
    assert first != second


class _KilledError(Exception):
    pass


def test_a_run_killed_after_its_last_step_ends_as_if_never_stopped(tmp_path: Path) -> None:
    run(tmp_path / "straight", settings())

    def kill(what: str, done: int, total: int) -> None:
        if done == 60:
            raise _KilledError

    with pytest.raises(_KilledError):
        run(tmp_path / "killed", settings(), kill)
    assert list((tmp_path / "killed").glob("resume-*"))
    again: list[int] = []
    run(tmp_path / "killed", settings(), lambda what, done, total: again.append(done))
    assert again[0] == 40  # the checkpoint was written at step 30
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_a_checkpoint_of_other_data_or_settings_is_not_resumed(tmp_path: Path) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if done == 50:
            raise _KilledError

    with pytest.raises(_KilledError):
        run(tmp_path, settings(), kill)
    seen: list[int] = []
    run(tmp_path, settings(rate=2e-2), lambda what, done, total: seen.append(done))
    assert seen[0] == 10
    assert not list(tmp_path.glob("resume-*"))


def test_a_parameter_that_received_no_gradient_does_not_move() -> None:
    rows = make_rows({1: 300, 2: 300})
    rows = replace(rows, user=rows.user % 10, history=rows.history % 7, item=rows.item % 7)
    given = settings(unknown_share=0.0, max_steps=5)
    model = SharedModel(SHAPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module = MetaTraining(model, get_meta_learner("joint"), get_outer("per_task", contexts=3), given, steps=5)
    sampler = EpisodeSampler(rows, tasks=4, support=0, query=32, steps=5, seed=0)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with pytest.warns(FutureWarning, match="LeafSpec"):
        Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, train_dataloaders=sampler)  # fmt: skip
    after = model.state_dict()
    assert torch.equal(after["user_table"][10:], before["user_table"][10:])
    assert not torch.equal(after["user_table"][1:10], before["user_table"][1:10])
    assert torch.equal(after["item_table"][7:], before["item_table"][7:])
    for name in ("context_table", "context_head"):
        assert torch.equal(after[name][[0, 3]], before[name][[0, 3]])
        assert not torch.equal(after[name][[1, 2]], before[name][[1, 2]])
    assert all(not torch.equal(after[name], before[name]) for name in before if name.startswith("weights."))


def test_training_stops_when_patience_ends_and_keeps_the_best_weights(tmp_path: Path) -> None:
    noise = replace(ROWS, label=torch.randint(0, 2, ROWS.label.shape).float())
    given = settings(max_steps=2000, patience=2, rate=3e-2)
    report = train(noise, LATER, SHAPE, given, tmp_path)
    assert report.steps < 2000
    assert report.steps - report.best_step == 20
    assert context_losses(load_model(tmp_path), LATER) == report.context_losses
    looks = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert looks[0] == ["step", "part", "context", "log_loss"]
    parts = {(look[1], look[2]) for look in looks[1:]}
    assert parts == {(part, context) for part in ("training", "validation") for context in "123"}


def test_a_warm_start_begins_near_the_earlier_model_and_grows_its_tables(tmp_path: Path) -> None:
    before = run(tmp_path / "cold", settings(max_steps=200))
    larger = replace(SHAPE, users=30, items=40)
    seen: list[int] = []
    warm = train(
        ROWS, LATER, larger, settings(warm_steps=10, rate=1e-5, table_rate=1e-5), tmp_path / "warm",
        warm_from=tmp_path / "cold", progress=lambda what, done, total: seen.append(total),
    )  # fmt: skip
    assert set(seen) == {10}
    assert warm.validation_loss == pytest.approx(before.validation_loss, abs=0.01)
    earlier, grown = load_model(tmp_path / "cold"), load_model(tmp_path / "warm")
    assert grown.shape == larger
    torch.testing.assert_close(grown.user_table[:21], earlier.user_table, atol=1e-3, rtol=0)
    torch.testing.assert_close(grown.user_table[21:], earlier.user_table[:1].expand(9, -1), atol=1e-4, rtol=0)
    with pytest.raises(SchemaError, match=r"other \['hidden'\], and smaller tables of \['users', 'items'\]"):
        train(
            ROWS, LATER, replace(SHAPE, users=21, hidden=(8, 8)), settings(), tmp_path / "other",
            warm_from=tmp_path / "warm",
        )  # fmt: skip


def test_a_warm_start_that_learns_nothing_better_keeps_the_earlier_weights(tmp_path: Path) -> None:
    before = run(tmp_path / "cold", settings(max_steps=200))
    harmful = settings(rate=1.0, table_rate=1.0)
    report = train(ROWS, LATER, SHAPE, harmful, tmp_path / "warm", warm_from=tmp_path / "cold")
    assert report.best_step == 0
    assert report.validation_loss == before.validation_loss
    weights = "model.safetensors"
    assert (tmp_path / "warm" / weights).read_bytes() == (tmp_path / "cold" / weights).read_bytes()


def test_no_later_rows_are_no_obstacle(tmp_path: Path) -> None:
    report = train(ROWS, make_rows({}), SHAPE, settings(), tmp_path)
    assert math.isfinite(report.validation_loss)


def test_rows_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    bad = ROWS.dense.clone()
    bad[5, 2] = float("nan")
    for rows, error, text in (
        (replace(ROWS, dense=bad), SchemaError, "column dense: expected finite values"),
        (replace(ROWS, user=ROWS.user + 50), SchemaError, "column user: expected indices below 21"),
        (replace(ROWS, dense=ROWS.dense[:, :4]), SchemaError, "expected 6 features, found 4"),
        (make_rows({}), InputError, "expected a context with at least one row"),
    ):
        with pytest.raises(error, match=text):
            train(rows, LATER, SHAPE, settings(), folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"meta_learner": "x"}, "unknown meta-learner 'x'; there are joint, maml"),
        ({"outer": "x"}, "training.outer: expected one of mean, per_task, .*, found 'x'"),
        ({"backbone": "x"}, "training.backbone: expected one of mlp, .*, found 'x'"),
        ({"step_weights": (1.0,)}, "expected step_weights none, or one from 0 for each inner step"),
        ({"adapter_fit": "meta_learner", "fast": "dense"}, "found fast = dense"),
        ({"outer": "mean", "tasks": 2}, "expected a task for each of 3 contexts, found tasks=2"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    changes: dict[str, object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        train(ROWS, LATER, SHAPE, settings(**changes), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_tasks_narrowed_to_categories_train_elsewhere_but_as_surely(tmp_path: Path) -> None:
    whole = train_tiny(tmp_path / "whole", TINY)
    narrow = train_tiny(tmp_path / "narrow", TINY.model_copy(update={"narrow_to": "categories"}))
    assert narrow.context_losses != whole.context_losses
    assert narrow.validation_loss < 0.65  # 0.69 at the start


def looks(folder: Path, name: str) -> list[list[float]]:
    """A CSV file's rows without what is no number."""
    lines = [line.split(",") for line in (folder / name).read_text().splitlines()[1:]]
    return [[float(cell) for cell in line if cell not in ("training", "validation")] for line in lines]


def test_every_look_tells_how_far_contexts_pull_apart(tmp_path: Path) -> None:
    report = train_tiny(tmp_path, TINY)
    head = (tmp_path / "gradients.csv").read_text().splitlines()[0]
    found = looks(tmp_path, "gradients.csv")
    assert head == "step,context_a,context_b,cosine"
    assert {line[0] for line in found} == {line[0] for line in looks(tmp_path, "metrics.csv")}
    after = {
        pair: [line[3] for line in found if (line[1], line[2]) == pair and line[0]]
        for pair in ((1, 2), (1, 3), (2, 3))
    }
    cosines = [cosine for of in after.values() for cosine in of]
    assert sum(after[1, 2]) / 8 > 0.2 > -0.1 > sum(after[1, 3]) / 8  # context 3 turns the rule round
    assert report.mean_cosine == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
    assert report.conflicting == sum(cosine < 0 for cosine in cosines) / len(cosines)


def test_a_single_context_has_no_conflict(tmp_path: Path) -> None:
    report = train(ROWS.of_context(1), LATER, SHAPE, settings(max_steps=20), tmp_path)
    assert (report.mean_cosine, report.conflicting) == (None, None)


@pytest.mark.parametrize("changes", [{}, {"meta_learner": "meta_sgd", "outer": "famo"}])
def test_to_look_at_gradients_changes_nothing_in_training(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = TINY.model_copy(update={**changes, "max_steps": 20})
    train_tiny(tmp_path / "with", given)
    monkeypatch.setattr(MetaTraining, "conflicts", lambda self: [])
    train_tiny(tmp_path / "without", given)
    files = [contents(tmp_path / name) for name in ("with", "without")]
    for name in ("model.safetensors", "metrics.csv"):
        assert files[0][name] == files[1][name]


def test_training_leaves_torch_and_the_log_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run(tmp_path, settings(max_steps=20))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_saved_model_scores_as_before_and_its_file_holds_the_shape(tmp_path: Path) -> None:
    run(tmp_path, settings(max_steps=20))
    model = load_model(tmp_path)
    assert not model.training
    np.testing.assert_array_equal(predict_logits(model, LATER), predict_logits(load_model(tmp_path), LATER))
    assert predict_logits(model, make_rows({})).shape == (0,)
    assert read_json(tmp_path / "model.json")["shape"] == SHAPE.to_json()
    assert all(getattr(model, name).abs().sum() > 0 for name in model.tables)
