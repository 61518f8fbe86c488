"""torch.compile: one graph, and none again as the ramp moves. Backends without a C++ compiler."""

import pytest
import torch
import torch._dynamo
from norm_reference import assert_near, network, state, statistics_of, trained
from torch._dynamo.testing import CompileCounterWithBackend

from batch_renorm.norm import BatchRenorm2d, Ramp, StepStatistics, batch_renorm, layers_of, set_limits


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def mixed_network():
    """One layer with groups, one that averages the variance of the whole batch."""
    model = network(momentum=0.1, group_size=2)
    model[4].group_size, model[4].averages = None, "variance"
    set_limits(model, 1.0, 0.0)
    return model


@pytest.mark.parametrize(("deferred", "in_the_layers"), [(False, False), (True, False), (False, True)])
def test_compiled_training_equals_eager_without_recompiling_as_the_ramp_moves(deferred, in_the_layers):
    """The gradients too: the compiler must not recompute r and d from the moved mu and sigma."""
    ramp = Ramp(1, 4, 3)
    models = [mixed_network(), mixed_network()]
    for layer in (layer for model in models for layer in layers_of(model).values() if in_the_layers):
        layer.ramp = ramp
    backend = CompileCounterWithBackend("aot_eager")
    run = torch.compile(models[1], backend=backend, fullgraph=True, dynamic=False)
    statistics = [StepStatistics(model) for model in models] if deferred else []
    for step in range(5):
        x = torch.randn(4, 3, 8, 8) * 3 + 1
        for one in statistics:
            one.measure_clipping = step in (2, 4)  # a recorded step compiles nothing anew
        for model, forward in zip(models, (models[0], run), strict=True):
            if not in_the_layers:
                set_limits(model, *ramp(step))
            model.zero_grad()
            forward(x).square().mean().backward()
        for one in statistics:
            one.update()
        if deferred and step in (2, 4):
            fractions = [one.clipped_fractions() for one in statistics]
            assert fractions[0] == fractions[1]
        tensors = [[*(p.grad for p in model.parameters()), *model.buffers()] for model in models]
        torch.testing.assert_close(*tensors, rtol=1e-4, atol=1e-5)
    assert backend.frame_count == 1


def test_compiled_evaluation_equals_eager_and_a_batch_that_is_not_finite_poisons_nothing():
    model, x = BatchRenorm2d(3), torch.randn(4, 3, 2, 2)
    model(x)
    before = statistics_of(model)
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    run(x * torch.nan)
    assert torch.equal(model.running_mean, before["running_mean"])
    assert torch.equal(model.running_var, before["running_var"])
    model.eval()
    torch.testing.assert_close(run(x), model(x))


@pytest.mark.parametrize(("dtype", "group_size"), [(torch.float64, 2), (torch.bfloat16, None)])
def test_compiled_function_equals_eager(dtype, group_size):
    mu, sigma, gamma, beta = state(5, torch.promote_types(dtype, torch.float32)).values()
    x, g = ((torch.randn(4, 5, 3, 3) * 2 + 1).to(dtype) for _ in range(2))

    def run(x, gamma, beta):
        return batch_renorm(x, mu, sigma, gamma, beta, 1.5, 0.5, 1e-3, group_size)

    eager = trained(run, x, g, gamma, beta)
    compiled = trained(torch.compile(run, backend="aot_eager", fullgraph=True), x, g, gamma, beta)
    assert compiled[0].dtype == dtype
    assert_near(compiled, eager, 1e-9 if dtype == torch.float64 else 5e-2)
