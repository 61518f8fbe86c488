"""Contracts 2 and 3: a step is a step, whatever the ranks and passes.

The reference is a second implementation, in this file, of the recipe as facts and paper state it:
plain autograd, one worker after another, RMSProp and averages written out.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from batch_renorm.norm import BatchRenorm2d
from batch_renorm.running.build import build
from tests.conftest import TINY
from tests.running.runs import assert_close, curve, final_state, mu_and_sigma, train_in_forks, trained

STEPS = 4
OVERRIDES = [
    *TINY, "size.workers=5", "size.minibatch=8", f"size.steps={STEPS}", "size.evaluate_every=4",
    "ramp.start=0", "ramp.dmax_end=3", "ramp.rmax_end=4", "size.alpha=0.1",
]  # fmt: skip


class PlainNorm(torch.nn.Module):
    """Algorithm 1 for one group, in plain autograd; keeps each forward's muB and sigmaB."""

    def __init__(self, layer, group, variance):
        super().__init__()
        self.bias, self.eps = layer.bias, layer.eps
        self.register_buffer("mu", layer.mu)
        self.register_buffer("sigma", layer.sigma)
        self.group, self.variance, self.seen, self.limits = group, variance, [], (1.0, 0.0)

    def forward(self, x):
        rmax, dmax = self.limits
        outputs = []
        for part in x.split(self.group):
            mu_b = part.mean((0, 2, 3))
            sigma_b = (self.eps + ((part - mu_b[:, None, None]) ** 2).mean((0, 2, 3))).sqrt()
            r = (sigma_b / self.sigma).clamp(1 / rmax, rmax).detach()
            d = ((mu_b - self.mu) / self.sigma).clamp(-dmax, dmax).detach()
            xhat = (part - mu_b[:, None, None]) / sigma_b[:, None, None] * r[:, None, None] + d[:, None, None]
            outputs.append(xhat + self.bias[:, None, None])
            self.seen.append((mu_b.detach(), sigma_b.detach()))
        return torch.cat(outputs)

    def move(self, alpha):
        mu_b = torch.stack([mu for mu, _ in self.seen]).mean(0)
        sigmas = torch.stack([sigma for _, sigma in self.seen])
        self.seen = []
        self.mu += alpha * (mu_b - self.mu)
        if self.variance:
            moved = (self.sigma**2 - self.eps) * (1 - alpha) + alpha * (sigmas**2 - self.eps).mean(0)
            self.sigma.copy_((moved + self.eps).sqrt())
        else:
            self.sigma += alpha * (sigmas.mean(0) - self.sigma)


def replace_norms(module, group, variance):
    for name, child in module.named_children():
        if isinstance(child, BatchRenorm2d):
            setattr(module, name, PlainNorm(child, group, variance))
        else:
            replace_norms(child, group, variance)


def reference(run):
    """The run's steps by the written-out recipe; returns model and average as in a checkpoint."""
    config = run.config
    optim, minibatch = config["optim"], config["minibatch"]
    renorm = config["norm"]["name"] == "renorm"
    model = copy.deepcopy(run.training.model)
    replace_norms(model, minibatch["group"], not renorm)
    norms = [m for m in model.modules() if isinstance(m, PlainNorm)]
    average, square, momentum = {}, {}, {}
    labels = torch.from_numpy(run.source.labels("train"))
    for step in range(STEPS):
        ramp = config["ramp"]
        rmax = 1 + 2 * min(1, max(0, (step - ramp["start"]) / (ramp["rmax_end"] - ramp["start"])))
        dmax = 5 * min(1, max(0, (step - ramp["start"]) / (ramp["dmax_end"] - ramp["start"])))
        for norm in norms:
            norm.limits = (rmax, dmax) if renorm else (1.0, 0.0)
        losses = []
        for worker in range(5):
            indices = run.regime(config["seed"], step, worker)
            images = run.source.images([run.source.fetch("train", indices)], torch.device("cpu"))
            smoothing = config["loss"]["label_smoothing"]
            losses.append(F.cross_entropy(model(images), labels[indices], label_smoothing=smoothing))
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
        length = torch.stack([g.norm() for g in gradients]).norm()
        rate = optim["lr"] * optim["lr_decay"] ** (step // optim["lr_decay_steps"])
        with torch.no_grad():
            for (name, p), g in zip(model.named_parameters(), gradients, strict=True):
                g = g * min(1, optim["clip_norm"] / length)
                if p.dim() > 1:
                    g = g + optim["weight_decay"] * p
                square[name] = 0.9 * square.get(name, torch.ones_like(p)) + 0.1 * g**2
                momentum[name] = 0.9 * momentum.get(name, 0) + rate * g / (square[name] + optim["eps"]).sqrt()
                p -= momentum[name]
            for norm in norms:
                norm.move(config["norm"]["alpha"])
            now = {n: t.clone() for n, t in (*model.named_parameters(), *model.named_buffers())}
            decay = min(config["average"]["decay"], (1 + step) / (10 + step)) if step else 0
            average = {n: decay * average.get(n, 0) + (1 - decay) * t for n, t in now.items()}
    return {f"model.{n}": t for n, t in now.items()} | {f"average.module.{n}": t for n, t in average.items()}


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("experiment", ["noniid_renorm", "micro4_batchnorm"])
def test_any_number_of_passes_takes_the_written_out_step(compose, tmp_path, experiment, limit):
    config = compose(*OVERRIDES, f"experiment={experiment}", f"trainer.workers_per_pass={limit or 'null'}")
    expected = reference(build(config))
    trained(config, tmp_path)
    got = mu_and_sigma(final_state(tmp_path), config["norm"]["eps"])
    assert_close({name: got[name] for name in expected}, expected, 3e-6)


@pytest.mark.parametrize("experiment", ["noniid_renorm", "micro4_batchnorm"])
def test_one_two_and_three_ranks_agree(compose, tmp_path, experiment):
    """Five workers: shares of 3 and 2, and of 2, 2 and 1, where the last rank's first pass is empty."""
    for ranks, limit in ((1, "null"), (2, "null"), (3, 1)):
        folder = tmp_path / str(ranks)
        config = compose(*OVERRIDES, f"experiment={experiment}", f"trainer.workers_per_pass={limit}")
        train_in_forks(config, folder, ranks)
        assert_close(final_state(folder), final_state(tmp_path / "1"), 3e-6)
        one, other = curve(tmp_path / "1"), curve(folder)
        assert [row[:2] for row in one] == [row[:2] for row in other]
        for a, b in zip(one, other, strict=True):
            if a[1] in ("loss", "gradient_norm", "lr", "rmax", "dmax"):
                assert float(a[2]) == pytest.approx(float(b[2]), rel=1e-3), a
