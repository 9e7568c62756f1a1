"""Every meta-learner is one program: torch compiles it without a break, and what comes out is the same."""

from __future__ import annotations

import pytest
import torch
from labelled_tasks import gradients, make_case, make_learner
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from recmeta.meta.interface import Data
from recmeta.meta.registry import META_LEARNERS


def assert_compiled_is_eager(name: str, backend: str, steps: int = 2) -> None:
    case = make_case(tasks=3, rows=4)
    learner = make_learner(name, case, inner_steps=steps, conjugate_steps=1)
    learnt = case.learnt(learner)

    def meta_loss(support: Data, query: Data) -> Tensor:
        return learner.meta_losses(case.problem, case.weights, support, query).mean()

    torch.compiler.reset()
    compiled = torch.compile(meta_loss, fullgraph=True, backend=backend)
    expected, found = (program(case.support, case.query) for program in (meta_loss, compiled))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    slopes, right = gradients(found, learnt), gradients(expected, learnt)
    for part in learnt:
        torch.testing.assert_close(slopes[part], right[part], atol=1e-5, rtol=1e-5, msg=part)


@pytest.mark.parametrize("name", sorted(META_LEARNERS))
def test_compiled_is_eager(name: str) -> None:
    assert_compiled_is_eager(name, "aot_eager")


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own
def test_compiled_to_machine_code_is_eager() -> None:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("there is no C++ compiler")
    assert_compiled_is_eager("maml", "inductor", steps=1)
