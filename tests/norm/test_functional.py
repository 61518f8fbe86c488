"""batch_renorm against the paper."""

import pytest
import torch
from norm_reference import as_input, as_matrix, assert_near, by_groups, state, trained
from torch import nn

from batch_renorm.norm import batch_renorm

EPS = 1e-3
BOUNDS = [(1.0, 0.0), (1.5, 0.5), (3.0, 5.0), (float("inf"), float("inf"))]
# In groups of 1 some have a single value of a channel, which batchnorm refuses.
SHAPES = [(6, 5), (6, 5, 7), (6, 5, 4, 3), (6, 5, 3, 2, 4), (6, 1, 4, 3), (6, 5, 1, 1), (2, 5, 1, 3)]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def random_input(shape, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    spread = torch.linspace(0.3, 3, shape[1], dtype=torch.float64)
    return (as_input(as_matrix(x) * spread + spread.flip(0), shape)).contiguous().to(dtype)


def arranged(x, layout):
    """x in another memory layout, with the same values; "expanded" repeats the first example."""
    if layout == "channels_last":
        return x.contiguous(memory_format=FORMATS[x.dim()]) if x.dim() in FORMATS else x
    if layout == "slice":
        wide = torch.empty(2 * x.shape[0], x.shape[1] + 3, *x.shape[2:], dtype=x.dtype)
        wide[::2, 1:-2] = x
        return wide[::2, 1:-2]
    if layout == "expanded":
        return x[:1].expand_as(x)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    return x


def ours(x, g, group_size, rmax, dmax, mu, sigma, gamma, beta):
    def function(x, gamma, beta):
        return batch_renorm(x, mu, sigma, gamma, beta, rmax, dmax, EPS, group_size)

    return trained(function, x, g, gamma, beta)


@pytest.mark.parametrize("group_size", [None, 2, 1])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "transposed", "expanded"])
@pytest.mark.parametrize("shape", SHAPES)
def test_algorithm_1_and_its_printed_gradients(shape, layout, group_size):
    x, g = (arranged(random_input(shape, seed=seed), layout) for seed in (1, 2))
    for bounds in BOUNDS:
        expected = by_groups(x, g, len(x) // (group_size or len(x)), *bounds, **state(shape[1]))
        found = ours(x, g, group_size, *bounds, **state(shape[1]))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group_size", [None, 2])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(6, 2), (4, 2, 3), (4, 2, 2, 1), (2, 2, 2, 2)])
def test_first_and_second_derivatives_with_r_and_d_frozen(shape, layout, group_size):
    """The difference quotient moves r and d, so bounds that hold them: r = 1/1.25, d = 0."""
    x = arranged(random_input(shape), layout).requires_grad_()
    gamma, beta = (state(2)[name].requires_grad_() for name in ("gamma", "beta"))
    mu, sigma = torch.zeros(2).double(), torch.full((2,), 100.0).double()

    def run(x, gamma, beta):
        return batch_renorm(x, mu, sigma, gamma, beta, 1.25, 0.0, EPS, group_size)[0]

    assert torch.autograd.gradcheck(run, (x, gamma, beta), check_forward_ad=True, check_batched_grad=True)
    if layout == "contiguous":
        assert torch.autograd.gradgradcheck(run, (x, gamma, beta))


def test_without_gamma_and_beta_they_are_1_and_0():
    x, mu, sigma = random_input((6, 5, 4, 3)), state(5)["mu"], state(5)["sigma"]
    one, zero = torch.ones(5).double(), torch.zeros(5).double()
    expected = batch_renorm(x, mu, sigma, one, zero, 1.5, 0.5)
    for gamma, beta in [(None, None), (None, zero), (one, None)]:
        torch.testing.assert_close(batch_renorm(x, mu, sigma, gamma, beta, 1.5, 0.5), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("group_size", [None, 2, 1])
@pytest.mark.parametrize(("shape", "of_float32"), [((8, 5, 6, 5), 1e-5), ((4, 32, 48, 48), 1e-4)])
def test_dtypes(dtype, layout, group_size, shape, of_float32):
    """Output and gradient in the input's dtype, statistics in float32 to its accuracy; large inputs go other ways."""
    x = arranged(random_input(shape, dtype), layout)
    g = random_input(shape, dtype, seed=2)
    values = state(shape[1], torch.float32)
    found = ours(x, g, group_size, 1.5, 0.5, **values)
    wide = {name: value.double() for name, value in values.items()}
    exact = by_groups(x.double(), g.double(), len(x) // (group_size or len(x)), 1.5, 0.5, **wide)
    assert [t.dtype for t in found] == [dtype, *2 * [torch.float32], dtype, *2 * [torch.float32]]
    assert found[0].stride() == found[3].stride() == x.stride()
    assert_near(found[1:3], exact[1:3], 1e-5)
    assert_near(found, exact, {torch.float32: of_float32, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype])
    values |= {name: values[name].to(dtype) for name in ("gamma", "beta")}
    assert {t.dtype for t in ours(x, g, group_size, 1.5, 0.5, **values)[3:]} == {dtype}


@pytest.mark.parametrize("group_size", [None, 2])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
def test_output_can_be_changed_in_place(layout, group_size):
    """An in-place ReLU after the layer: y is neither a view nor needed for the gradient."""
    x = arranged(random_input((4, 5, 3, 3)), layout)
    grads = []
    for inplace in (False, True):
        leaf = x.detach().requires_grad_()
        y = batch_renorm(leaf, **state(5), rmax=1.5, dmax=0.5, group_size=group_size)[0]
        nn.functional.relu(y, inplace=inplace).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("group_size", [None, 2])
def test_only_what_needs_a_gradient_gets_one(group_size):
    values, x = state(5), random_input((4, 5, 3, 3))
    values["gamma"].requires_grad_()
    y, mu_b, sigma_b = batch_renorm(x, **values, group_size=group_size)
    y.square().sum().backward()
    assert values["gamma"].grad is not None
    assert [t.requires_grad for t in (y, mu_b, sigma_b)] == [True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5)}, r"\(N, C, ...\)"),
        ({"x": torch.zeros(4, 6, 3, 3)}, r"6 channels.*mu.*\(5,\)"),
        ({"x": torch.zeros(2, 5, dtype=torch.int64)}, "int64"),
        ({"gamma": torch.ones(6)}, r"5 channels.*gamma.*\(6,\)"),
        ({"group_size": 3}, "8 examples.*groups of 3"),
        ({"group_size": 16}, "8 examples.*groups of 16"),
        ({"group_size": 0}, "group_size.*0"),
        ({"rmax": 0.5}, "rmax.*0.5"),
        ({"rmax": float("nan")}, "rmax.*nan"),
        ({"dmax": -1.0}, "dmax.*-1"),
        ({"eps": 0.0}, "eps.*0"),
    ],
)
def test_bad_input_names_the_thing(change, message):
    arguments = {"x": torch.zeros(8, 5, 3, 3), **state(5, torch.float32), **change}
    with pytest.raises(TypeError if message == "int64" else ValueError, match=message):
        batch_renorm(**arguments)


def test_sigma_of_0_counts_as_the_root_of_eps():
    x, values = random_input((4, 5, 3, 3)), state(5)
    values["sigma"] = torch.zeros(5).double()
    values["mu"] = x.mean((0, 2, 3))  # (muB - mu) / sigma would be 0 / 0
    y = batch_renorm(x, **values, rmax=3.0, dmax=5.0)[0]
    values["sigma"].fill_(EPS**0.5)
    torch.testing.assert_close(y, batch_renorm(x, **values, rmax=3.0, dmax=5.0)[0])
    assert y.isfinite().all()
