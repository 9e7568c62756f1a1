"""Few-shot classifiers on digits whose classes were never met, beside what needs no learning over episodes.

nice -n 19 python benchmarks/digits.py --out benchmarks/digits.md
python benchmarks/digits.py --validate        # settings are chosen by this: no held-out class is looked at

Each split of the ten digits trains on five and tests on the other five, in 5-way episodes. An episode of
training draws five classes. Classes are multiplied: each digit in four quarter turns (Santoro et al. 2016),
and the upper half of one digit on the lower half of another. Every picture is turned, scaled, sheared
and moved a little. Test pictures are as they are.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from recmeta.meta.few_shot.interface import FewShotClassifier
from recmeta.meta.few_shot.logistic import LogisticClassifier
from recmeta.meta.few_shot.matching import Matching
from recmeta.meta.few_shot.memory_augmented import MemoryAugmented
from recmeta.meta.few_shot.prototypical import Prototypical
from recmeta.meta.few_shot.ridge import RidgeClassifier
from recmeta.meta.few_shot.siamese import Siamese

WAYS = 5
SHOTS = (1, 5)
QUERIES = 5
"""Query pictures of a class, in an episode."""
STEPS, TASKS, RATE = 300, 8, 5e-3
FILTERS = 32
FEATURES = FILTERS * 16
TURNS = 4
MIXED = 0.5
"""Share of training classes that are made of two digits."""
COMPONENTS = 32
"""Numbers of a picture that a memory meets."""
REMEMBER_STEPS, REMEMBER_RATE = 2500, 4e-3
MARK = "<!-- written by benchmarks/digits.py -->\n\n"
"""What follows it in the page is written anew."""
PICTURES = 174
"""Pictures of each digit that are used: as many as the rarest has."""


class Episodes(NamedTuple):
    """A batch of episodes."""

    support: Tensor
    """[tasks, ways * shots, 8, 8]."""
    label: Tensor
    """[tasks, ways * shots]."""
    query: Tensor
    """[tasks, ways * QUERIES, 8, 8]."""
    answer: Tensor
    """[tasks, ways * QUERIES]."""


def load_pictures() -> Tensor:
    """Return scikit-learn's digits, [10, PICTURES, 8, 8] in [0, 1]."""
    digits = load_digits()
    pictures = torch.tensor(digits.images, dtype=torch.float32) / 16
    return torch.stack([pictures[torch.tensor(digits.target) == digit][:PICTURES] for digit in range(10)])


def draw(
    pictures: Tensor, tasks: int, shots: int, ways: int, draws: torch.Generator, *, turns: int, mixed: float
) -> Tensor:
    """Draw pictures of distinct classes: [tasks, ways, shots + QUERIES, 8, 8], no picture twice.

    A class is (digit above, digit below, quarter turns); ``mixed`` is the share of those of two digits.
    """
    digits, pool = pictures.shape[:2]
    above, below, turn = torch.meshgrid(*map(torch.arange, (digits, digits, turns)), indexing="ij")
    pure = above == below
    share = torch.where(pure, (1 - mixed) / pure.sum(), mixed / max(1, int((~pure).sum()))).flatten()
    chosen = torch.multinomial(share.expand(tasks, -1), ways, generator=draws)
    of_above, of_below, of_turn = (part.flatten()[chosen] for part in (above, below, turn))
    order = torch.rand(2, tasks, ways, pool, generator=draws).argsort(-1)[..., : shots + QUERIES]
    same = (of_above == of_below).unsqueeze(-1)
    upper = pictures[of_above.unsqueeze(-1), order[0]][..., :4, :]
    lower = pictures[of_below.unsqueeze(-1), torch.where(same, order[0], order[1])][..., 4:, :]
    whole = torch.cat([upper, lower], dim=-2)
    for turned in range(1, turns):
        which = of_turn == turned
        whole[which] = whole[which].rot90(turned, (-2, -1))
    return whole


def warped(pictures: Tensor, draws: torch.Generator) -> Tensor:
    """Turn by up to 15 degrees, scale and shear by up to 15 %, move by up to a pixel: [n, 8, 8]."""

    def between(most: float) -> Tensor:
        return (torch.rand(len(pictures), generator=draws) * 2 - 1) * most

    angle, wide, high, shear = between(math.pi / 12), 1 + between(0.15), 1 + between(0.15), between(0.15)
    first = torch.stack([angle.cos() * wide, shear - angle.sin() * high, between(0.25)], dim=-1)
    second = torch.stack([angle.sin() * wide, angle.cos() * high, between(0.25)], dim=-1)
    grid = functional.affine_grid(
        torch.stack([first, second], dim=1), [len(pictures), 1, 8, 8], align_corners=False
    )
    return functional.grid_sample(pictures.unsqueeze(1), grid, align_corners=False).squeeze(1)


def split_up(whole: Tensor, shots: int) -> Episodes:
    """Make the first ``shots`` of each class support and the others query."""
    tasks, ways, each = whole.shape[:3]
    classes = torch.arange(ways)
    return Episodes(
        whole[:, :, :shots].flatten(1, 2),
        classes.repeat_interleave(shots).expand(tasks, -1),
        whole[:, :, shots:].flatten(1, 2),
        classes.repeat_interleave(each - shots).expand(tasks, -1),
    )


def shuffled(episodes: Episodes, draws: torch.Generator) -> Episodes:
    """Put the rows of support and of query into a random order: a memory must not count on one."""
    parts = []
    for rows, label in (episodes[:2], episodes[2:]):
        order = torch.rand(label.shape, generator=draws).argsort(-1)
        parts += [rows[torch.arange(len(rows)).unsqueeze(1), order], label.gather(1, order)]
    return Episodes(*parts)


class Local(nn.Module):
    """Local features: one convolution and a maximum over 2 x 2 pixels, [n, 8, 8] -> [n, FEATURES].

    Deeper nets learnt the training classes by heart: on validation episodes they were far below pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, FILTERS, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        return functional.max_pool2d(self.convolution(pictures.unsqueeze(1)).relu(), 2).flatten(1)


def principal(embedding: nn.Module, pictures: Tensor) -> nn.Module:
    """The embedding, and then its first COMPONENTS principal components on training classes, of size 1."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        features = embedding(draw(pictures, 100, 1, WAYS, draws, turns=TURNS, mixed=MIXED).flatten(0, 2))
        middle = features.mean(0)
        _, sizes, axes = torch.linalg.svd(features - middle, full_matrices=False)
        axes = axes[:COMPONENTS] / (sizes[:COMPONENTS].square().mean() / len(features)).sqrt()
        project = nn.Linear(FEATURES, COMPONENTS)
        project.weight.copy_(axes)
        project.bias.copy_(-axes @ middle)
    return nn.Sequential(embedding, project)


def learn_to_remember(ways: int) -> MemoryAugmented:
    """Train a memory on Gaussian clusters of ever louder noise: how to bind a label needs no digits."""
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    model = MemoryAugmented(nn.Identity(), features=COMPONENTS, ways=ways, width=64, slots=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=REMEMBER_RATE)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, REMEMBER_RATE, total_steps=REMEMBER_STEPS)
    for step in range(REMEMBER_STEPS):
        shots = SHOTS[step % 2] if step > REMEMBER_STEPS // 4 else 1  # long sequences teach nothing at first
        noise = 0.3 + 0.8 * min(1.0, 1.5 * step / REMEMBER_STEPS) * torch.rand((), generator=draws)
        middle = torch.randn(48, ways, 1, COMPONENTS, generator=draws)
        whole = middle + noise * torch.randn(48, ways, shots + 1, COMPONENTS, generator=draws)
        loss = model.loss(*shuffled(split_up(whole, shots), draws), ways)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        rates.step()
    return model


CLASSIFIERS: dict[str, Callable[[nn.Module], FewShotClassifier]] = {
    "prototypical": Prototypical,
    "matching": lambda embedding: Matching(embedding, sharpness=10.0),
    "siamese": lambda embedding: Siamese(embedding, features=FEATURES),
    "ridge (R2-D2)": RidgeClassifier,
    "logistic": LogisticClassifier,
}


def train(model: FewShotClassifier, pictures: Tensor, seed: int, ways: int) -> None:
    """Train over episodes of one shot and of five, in turn."""
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for step in range(STEPS):
        shots = SHOTS[step % len(SHOTS)]
        whole = draw(pictures, TASKS, shots, ways, draws, turns=TURNS, mixed=MIXED)
        whole = warped(whole.flatten(0, 2), draws).reshape(whole.shape)
        loss = model.loss(*shuffled(split_up(whole, shots), draws), ways)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        rates.step()


@torch.no_grad()
def accuracy(model: FewShotClassifier, episodes: Episodes, ways: int) -> float:
    """Share of query pictures that are classified rightly."""
    right = [
        (model.log_probabilities(*part[:3], ways).argmax(-1) == part.answer).float().mean(1)
        for part in (Episodes(*chunk) for chunk in zip(*(rows.split(100) for rows in episodes), strict=True))
    ]
    return torch.cat(right).mean().item()


def nearest_pixels(episodes: Episodes) -> float:
    """Accuracy of the class of the nearest support picture."""
    nearest = torch.cdist(episodes.query.flatten(2), episodes.support.flatten(2)).argmin(-1)
    return (episodes.label.gather(1, nearest) == episodes.answer).float().mean().item()


def logistic_pixels(episodes: Episodes, most: int = 200) -> float:
    """Accuracy of scikit-learn's logistic regression on the first ``most`` episodes: it has no batches."""
    right = []
    for support, label, query, answer in list(zip(*episodes, strict=True))[:most]:
        fitted = LogisticRegression(max_iter=200).fit(support.flatten(1).numpy(), label.numpy())
        right.append((fitted.predict(query.flatten(1).numpy()) == answer.numpy()).mean())
    return float(np.mean(right))


def one_split(
    pictures: Tensor, seed: int, memory: MemoryAugmented, *, count: int, validate: bool
) -> dict[str, list[float]]:
    """Train on five digits, seeded, and return accuracies on the others for each number of shots.

    To validate, train on three of the five, and look at the other two, upright and by a quarter turn.
    """
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    training, test, turns = pictures[order[:5]], pictures[order[5:]], 1
    if validate:
        training, test, turns = pictures[order[:3]], pictures[order[3:5]], 2
    ways = memory.ways
    draws = torch.Generator().manual_seed(1_000 + seed)
    tests = [
        shuffled(split_up(draw(test, count, shots, ways, draws, turns=turns, mixed=0.0), shots), draws)
        for shots in SHOTS
    ]
    found = {
        "nearest neighbour on pixels": [nearest_pixels(episodes) for episodes in tests],
        "logistic regression on pixels": [logistic_pixels(episodes) for episodes in tests],
    }
    learnt: dict[str, nn.Module] = {}
    for name, make in CLASSIFIERS.items():
        torch.manual_seed(seed)
        learnt[name] = Local()
        model = make(learnt[name])
        train(model, training, seed, ways)
        found[name] = [accuracy(model, episodes, ways) for episodes in tests]
    memory.embedding = principal(learnt["prototypical"], training)
    found["memory-augmented"] = [accuracy(memory, episodes, ways) for episodes in tests]
    print(f"split {seed}, trained on {order[: len(training)].tolist()}", flush=True)
    return found


def interval(values: Sequence[float]) -> str:
    """Mean of splits in percent, with a 95 % t-interval."""
    found = 100 * np.asarray(values)
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found))
    return f"{found.mean():.1f} ± {half:.1f}"


def table(results: Sequence[dict[str, list[float]]]) -> str:
    """A row a method: accuracy, what it gains on nearest neighbour in the same split, in how many splits."""
    lines = [
        "| method | 1 shot | gain, paired | above in | 5 shots | gain, paired | above in |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in results[0]:
        cells = []
        for at in range(len(SHOTS)):
            found = [result[name][at] for result in results]
            gains = [result[name][at] - result["nearest neighbour on pixels"][at] for result in results]
            cells += [interval(found), interval(gains), f"{sum(gain > 0 for gain in gains)} of {len(gains)}"]
        if name == "nearest neighbour on pixels":
            cells = [cells[0], "", "", cells[3], "", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all splits and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--validate", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pictures = load_pictures()
    began = time.process_time()
    memory = learn_to_remember(4 if arguments.validate else WAYS)
    results = [
        one_split(pictures, seed, memory, count=arguments.episodes, validate=arguments.validate)
        for seed in range(arguments.splits)
    ]
    text = (
        f"{arguments.splits} splits of the ten digits, {arguments.episodes} episodes each "
        f"({time.process_time() - began:.0f} s of one core in all):\n\n{table(results)}"
    )
    print(text)
    if arguments.out is not None:
        before, mark, _ = arguments.out.read_text(encoding="utf-8").partition(MARK)
        arguments.out.write_text(f"{before}{mark}{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
