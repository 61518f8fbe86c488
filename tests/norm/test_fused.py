"""The GPU's kernels against Algorithm 1 in float64: on a GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch
from norm_reference import by_groups, state
from torch import nn

from batch_renorm.norm import BatchRenorm2d, StepStatistics, functional

pytest.importorskip("triton")
from batch_renorm.norm import fused

EPS = 1e-3
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GPU = pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")


def case(shape, ratio=1.0, dtype=torch.float32):
    """x, g in channels_last; every channel with a mean of ratio standard deviations."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=generator) for _ in range(2))
    x = (x + ratio).to(dtype)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    values = {name: t.to(DEVICE) for name, t in state(shape[1], torch.float32).items()}
    values["mu"] += ratio
    return x.to(DEVICE), g.to(DEVICE, dtype), values


def expected(x, g, groups, rmax, dmax, values):
    """Algorithm 1 in float64."""
    wide = {name: t.double() for name, t in values.items()}
    return by_groups(x.double(), g.double(), groups, rmax, dmax, **wide)


def found(x, g, groups, rmax, dmax, values):
    x, gamma, beta = (t.detach().clone().requires_grad_() for t in (x, values["gamma"], values["beta"]))
    arguments = x, values["mu"], values["sigma"], gamma, beta, rmax, dmax, EPS, groups
    y, mu_b, sigma_b = fused.FusedBatchRenorm.apply(*arguments)
    y.backward(g)
    return [y.detach(), mu_b, sigma_b, x.grad, gamma.grad, beta.grad]


def assert_near(got, wanted, tolerance):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)


SHAPES = [
    ((4, 5, 3, 3), 1),  # less than a tile
    ((6, 70, 5, 3), 3),  # channels and rows that are no multiple of a tile
    ((8, 3), 4),  # a matrix
    ((3, 1, 2, 2), 3),  # one channel
    ((2, 34, 24, 11), 2),  # several splits, the last one shorter
]


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_algorithm_1_and_its_printed_gradients(shape, groups):
    x, g, values = case(shape)
    arguments = x, g, groups, 1.5, 0.5, values
    assert_near(found(*arguments), expected(*arguments), 3e-5)


def test_splits_so_many_that_few_channels_fit_a_tile_of_them(monkeypatch):
    monkeypatch.setattr(fused, "TILE", 64)
    x, g, values = case((1, 9, 7, 8))
    plan = fused.Plan(x, 1)
    assert plan.settling[1]["BC"] == 4 < plan.reduction[1]["BC"] == 16
    arguments = x, g, 1, 1.5, 0.5, values
    assert_near(found(*arguments), expected(*arguments), 3e-5)


def test_a_mean_of_100_standard_deviations():
    x, g, values = case((2, 8, 40, 40), ratio=100.0)
    arguments = x, g, 2, 3.0, 5.0, values
    _, mu_b, sigma_b, *_ = found(*arguments)
    _, true_mu, true_sigma, *_ = expected(*arguments)
    assert ((sigma_b - true_sigma) / true_sigma).abs().max() < 5e-6  # 1e-5 of the variance
    assert (mu_b - true_mu).abs().max() < 1e-5 * 100


def test_bfloat16_has_float32_statistics_and_parameters_may_have_it():
    x, g, values = case((4, 6, 7, 5), dtype=torch.bfloat16)
    values |= {name: values[name].bfloat16() for name in ("gamma", "beta")}
    arguments = x, g, 2, 1.5, 0.5, values
    got, wanted = found(*arguments), expected(*arguments)
    assert {got[k].dtype for k in (0, 3, 4, 5)} == {torch.bfloat16}
    assert_near(got[1:3], wanted[1:3], 1e-5)
    assert_near([got[0], got[3]], [wanted[0], wanted[3]], 1e-2)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


def test_second_derivatives_are_those_of_the_formula():
    x, _, values = case((4, 5, 3, 3))
    results = []
    for route in (fused.FusedBatchRenorm.apply, functional.transform):
        leaves = [t.detach().clone().requires_grad_() for t in (x, values["gamma"], values["beta"])]
        y = route(leaves[0], values["mu"], values["sigma"], *leaves[1:], 1.5, 0.5, EPS, 2)[0]
        (gx,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
        results.append(torch.autograd.grad(gx.square().sum(), leaves))
    assert_near(results[0], [t.double() for t in results[1]], 1e-4)


def test_no_gamma_and_no_beta_and_a_nan_stays_one():
    x, _, values = case((4, 5, 3, 3))
    x[0, 1] = torch.nan
    y, mu_b, _ = fused.FusedBatchRenorm.apply(x, values["mu"], values["sigma"], None, None, 1.0, 0.0, EPS, 2)
    assert y[:2, 1].isnan().all()
    assert mu_b[0, 1].isnan()
    assert y[:, [0, 2, 3, 4]].isfinite().all()


def test_a_gpu_s_layers_use_them(monkeypatch):
    monkeypatch.setattr(functional, "TRITON_DEVICES", ("cuda", "cpu"))
    calls = []
    kernel = fused.FusedBatchRenorm.apply
    monkeypatch.setattr(fused.FusedBatchRenorm, "apply", lambda *a: (calls.append(1), kernel(*a))[1])
    x, _, _ = case((4, 5, 3, 3))
    layer, same = (BatchRenorm2d(5, group_size=2, device=DEVICE, dtype=dtype) for dtype in (None, torch.float64))
    torch.testing.assert_close(layer(x).double(), same(x.double()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.mu.double(), same.mu, rtol=1e-5, atol=1e-5)
    assert calls == [1]  # float64 goes another way


def test_kernels_compile_for_an_h100():
    """What the interpreter does not look at; needs no GPU, but a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("True") == 6


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from batch_renorm.norm import triton_kernels

tile = {"BM": 64, "BC": 64}
for name, constants in [
    ("statistics", tile),
    ("settle", {"gamma": None, "BS": 512, "BC": 8}),
    ("apply", tile | {"g": None, "g_slope": None}),
    ("backward_sums", tile),
    ("backward_settle", {"BS": 512, "BC": 8}),
    ("apply", tile),
]:
    kernel = getattr(triton_kernels, name)
    kinds = dict.fromkeys(kernel.arg_names, "*fp32")
    kinds |= dict.fromkeys({"x", "y", "g", "gx"} & set(kinds), "*bf16")
    kinds |= dict.fromkeys(("M", "C", "rows", "splits"), "i32")
    kinds |= dict.fromkeys({"eps"} & set(kinds), "fp32") | dict.fromkeys(constants, "constexpr")
    made = triton.compile(ASTSource(kernel, kinds, constants), target=GPUTarget("cuda", 90, 32))
    print(name, "cubin" in made.asm)
"""


# ---- on a GPU --------------------------------------------------------------------------------------


@GPU
@pytest.mark.parametrize(("shape", "groups"), [((32, 192, 17, 17), 8), ((32, 64, 147, 147), 1)])
def test_large_ones_and_bit_for_bit_again(shape, groups):
    x, g, values = case(shape)
    arguments = x, g, groups, 1.5, 0.5, values
    once, again = (found(*arguments) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert_near(once, expected(*arguments), 1e-4)


@GPU
@pytest.mark.parametrize("kept", [False, True])
def test_a_step_on_a_gpu_waits_for_nothing(kept, monkeypatch):
    monkeypatch.setattr(functional, "TRITON_DEVICES", ("cuda",) if kept else ())
    model = nn.Sequential(nn.Conv2d(3, 8, 3), BatchRenorm2d(8, group_size=2), nn.ReLU()).cuda()
    model.to(memory_format=torch.channels_last)
    statistics = StepStatistics(model)
    x = torch.randn(4, 3, 9, 9, device="cuda").contiguous(memory_format=torch.channels_last)
    for step in range(3):  # the first makes what is kept
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            model(x).square().mean().backward()
            statistics.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
