"""A GPU's step without a GPU: real modules on tensors that have a shape, a device "cuda" and no data.

What a first hour on a node would be lost on: a tensor left on the CPU, the host waiting for the device in the middle
of a step, more operations than a step needs.
"""

import pytest
import torch

from batch_renorm.data.kept import KeptImages
from batch_renorm.training.evaluation import Composition, Evaluation, evaluate
from tests.conftest import ROOT

pytest.importorskip("triton")
NORMS = 96


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from benchmarks import fake_gpu, fake_training

    return fake_gpu, fake_training


def say(capsys, what, count):
    with capsys.disabled():
        print(f"\n{what}: {len(count.calls):,} operations, {count.bytes / 1e9:.1f} GB", end="")


@pytest.mark.slow
def test_a_step_of_inception_waits_for_nothing_and_moves_what_it_must(benchmarks, capsys):
    """The fullest of 8 ranks: 7 workers x 32 images at 299 pixels in one pass, and in two."""
    _, fake_training = benchmarks
    with fake_training.on_fake_cuda() as fake:
        assert fake_training.strays(fake.module) == []
        fake.step(6999, [224])  # makes what is kept: the optimiser's state, the list of tensors to average
        first = fake.step(7000, [224])
        again = fake.step(7001, [128, 96])
        recorded = fake.step(7049, [224])
    for count, passes in ((first, 1), (again, 2)):
        assert count.waits == []
        for kernel in ("statistics", "settle", "apply", "backward_sums", "backward_settle", "backward_apply"):
            assert len([call for call in count.calls if call.name == f"triton {kernel}"]) == passes * NORMS
    assert len(first.calls) < 2000
    assert first.bytes < 112e9  # 15 of them for the colours
    norms = first.of("triton").bytes
    assert norms == pytest.approx(8 * 224 * 8.97e6 * 2, rel=0.02)  # 8 passes over bfloat16, and little else
    assert len(first.at("batch_renorm/norm/statistics.py").calls) < 40  # of all 96 layers together
    assert {"loss", "gradient_norm", "r_clipped", "seconds_step", "images_per_second"} <= set(fake.rows[-1])
    assert 0 < len(recorded.waits) < 20
    say(capsys, "a step of 224 images", first)


@pytest.mark.parametrize("how", ["a value", "a list", "unpinned", "blocking", "left behind"])
def test_what_the_test_above_is_to_notice(benchmarks, how):
    fake_gpu, _ = benchmarks
    with fake_gpu.fake_cuda(), fake_gpu.Counting() as count:
        x = torch.ones(3, device="cuda")
        y = torch.ones(3)
        if how == "left behind":
            with pytest.raises(Exception, match="device"):
                x + y
            return
        if how == "a value":
            x.sum().item()
        elif how == "a list":
            torch.tensor([1.0, 2.0, 3.0], device="cuda")
        elif how == "unpinned":
            y.to("cuda", non_blocking=True)
        else:
            y.pin_memory().to("cuda")
        assert len(count.waits) == 1
        y.pin_memory().to("cuda", non_blocking=True)
        torch.full((3,), 2.0, device="cuda") + torch.zeros_like(x)
        assert len(count.waits) == 1


def test_an_evaluation_waits_for_its_result_alone(benchmarks, capsys):
    fake_gpu, fake_training = benchmarks
    evaluation = Evaluation(
        every=1000, train_images=100, labels_per_minibatch=25, images_per_label=2, batch_size=100,
        trained=Composition(16, 2),
    )  # fmt: skip
    with fake_training.on_fake_cuda() as fake:
        fake.source.every_label = fake.source.every_label[:100] % 50
        counting = fake_gpu.Counting()
        with counting as count:
            kept, fetch, prepared = KeptImages(fake.source, pinned=True), fake.source.fetch, []
            fake.source.fetch = lambda split, indices, draw: (prepared.extend(indices), fetch(split, indices, draw))[1]
            model = fake.module.inference_model(7000)
            evaluate(model, fake.source, evaluation.measurements(fake.source), fake_gpu.CUDA, kept=kept)
    places = {wait.partition(" at ")[2].partition(":")[0] for wait in count.waits}
    assert places == {"batch_renorm/training/evaluation.py"}
    assert all("a value is asked for" in wait for wait in count.waits)
    assert all("tolist" in wait for wait in count.waits)
    assert len(prepared) <= 200  # each image once, whatever the measurements
    say(capsys, "an evaluation of 500 images", count)


def test_backward_by_hand_is_autograds(benchmarks):
    fake_gpu, _ = benchmarks
    torch.manual_seed(0)
    from batch_renorm.norm import BatchRenorm2d

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        BatchRenorm2d(8, group_size=2, rmax=1, dmax=0),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 1),
    )
    x = torch.randn(4, 3, 8, 8)

    def loss():
        y = model(x)
        return (y + y.sigmoid()).square().mean()

    loss().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    fake_gpu.backward(loss())
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
