"""mu and sigma moved once a step: over groups, passes, and (with gloo processes) ranks."""

import copy
import math
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from norm_reference import filled, statistics_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

from batch_renorm.norm import BatchRenorm1d, BatchRenorm2d, StepStatistics, set_limits
from tests.conftest import FORKS


def network(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), BatchRenorm2d(4, momentum=0.1, group_size=2), nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3), BatchRenorm2d(6, momentum=0.2, group_size=4, averages="variance"),
        nn.Flatten(), nn.Linear(24, 5), BatchRenorm1d(5, eps=1e-2, group_size=1),
    )  # fmt: skip
    return model.to(dtype)


def images(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 6, 6, generator=generator, dtype=torch.float64).to(dtype) * 2 + 1


@pytest.mark.parametrize("averages", ["sigma", "variance"])
def test_update_is_the_formula(averages):
    layer = filled(BatchRenorm2d(3, momentum=0.1, group_size=2, averages=averages).double())
    mu, sigma = layer.mu.clone(), layer.sigma.clone()
    statistics = StepStatistics(layer)
    x = images(8)[:, :, :, :3]
    layer(x[:6])
    layer(x[6:])
    assert torch.equal(layer.mu, mu)
    groups = x.unflatten(0, (4, 2)).movedim(2, 1).flatten(2)
    mu_b, var_b = groups.mean(2), groups.var(2, correction=0)
    statistics.update()
    torch.testing.assert_close(layer.mu, mu + 0.1 * (mu_b.mean(0) - mu))
    if averages == "sigma":
        expected = sigma + 0.1 * ((var_b + 1e-3).sqrt().mean(0) - sigma)
    else:
        var = sigma.square() - 1e-3
        expected = (1e-3 + var + 0.1 * (var_b.mean(0) - var)).sqrt()
    torch.testing.assert_close(layer.sigma, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_passes_do_not_matter(dtype):
    """The same groups in 1, 2 or 3 passes of unequal size, or in one that updates at once: the same y, mu and sigma."""
    x = images(16, dtype)
    found = []
    for passes in (None, [16], [4, 12], [8, 4, 4]):
        model = network(dtype)
        statistics = StepStatistics(model) if passes else None
        for _ in range(3):
            y = torch.cat([model(part) for part in x.split(passes or 16)])
            if statistics is not None:
                statistics.update()
        found.append({**statistics_of(model), "y": y.detach()})
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_a_layer_without_a_group_stays_and_evaluation_gives_none():
    model = network()
    statistics = StepStatistics(model)
    before = statistics_of(model)
    model[:4](images(4))
    statistics.update()
    after = statistics_of(model)
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    for name in ("4.running_mean", "4.running_var", "4.num_batches_tracked", "7.running_mean", "7.running_var"):
        assert torch.equal(after[name], before[name])
    model.eval()(images(4))
    with pytest.raises(ValueError, match="1-d"):
        statistics.update(torch.zeros(2, 2))
    statistics.update()  # the sums were cleared
    torch.testing.assert_close(statistics_of(model), after, rtol=0, atol=0)


def test_release_gives_the_layers_back():
    """To another StepStatistics, and to tools that estimate mu and sigma anew: update_bn, and PreciseBN by momentum."""
    model, x = network(), images(4)
    statistics = StepStatistics(model)
    with pytest.raises(ValueError, match=r"'1'.*release"):
        StepStatistics(model)
    with pytest.raises(RuntimeError, match="release"):
        update_bn([x], model)
    model[1].momentum = 1.0
    with pytest.raises(RuntimeError, match="release"):
        model(x)
    statistics.release()
    before = statistics_of(model)
    model(x)
    assert not torch.equal(statistics_of(model)["1.running_mean"], before["1.running_mean"])
    StepStatistics(model)


def test_options_may_change_between_steps():
    layer = BatchRenorm2d(3, momentum=0.1).double()
    statistics, x = StepStatistics(layer), images(4)
    for momentum in (0.0, 0.5):
        layer.momentum = momentum
        layer(x)
        statistics.update()
        torch.testing.assert_close(layer.mu, momentum * x.mean((0, 2, 3)))


def test_clipped_fractions_count_what_the_bounds_clip():
    layer = BatchRenorm2d(4, group_size=2, rmax=2.0, dmax=3.0)
    layer.mu, layer.sigma = torch.tensor([0.0, 0.0, 0.0, 9.0]), torch.tensor([1.0, 4.0, 0.1, 1.0])
    statistics = StepStatistics(nn.ModuleDict({"a": layer, "b": BatchRenorm2d(8)}))
    statistics.measure_clipping = True
    for part in torch.randn(8, 4, 20, 20).split(4):
        layer(part)
    statistics.update()
    fractions = statistics.clipped_fractions()
    assert fractions["a"] == fractions[""] == (0.5, 0.25)  # r: channels 1 and 2; d: channel 3
    assert all(math.isnan(value) for value in fractions["b"])
    statistics.measure_clipping = False
    layer(part)
    statistics.update()
    with pytest.raises(RuntimeError, match="measure_clipping"):
        statistics.clipped_fractions()


# ---- copies --------------------------------------------------------------------------------------


class Task(nn.Module):
    """As a LightningModule that holds its network, or is it."""

    def __init__(self, inside):
        super().__init__()
        self.net = nn.Sequential(BatchRenorm1d(3, momentum=0.5, dtype=torch.float64))
        self.statistics = StepStatistics(self if inside else self.net)

    def step(self):
        for _ in range(2):
            self.net(torch.ones(4, 3, dtype=torch.float64))
        self.statistics.update()
        return self.net[0].mu[0].item(), self.net[0].num_batches_tracked.item()


def in_a_child(task, queue):
    set_limits(task, 1.0, 0.0)
    queue.put(task.step())


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))])
def test_a_copy_with_its_model_moves_it_once_a_step(duplicate, inside):
    task = Task(inside)
    task.net(torch.full((4, 3), 5.0, dtype=torch.float64))
    twin = duplicate(task)  # with the sums so far
    assert twin.step() == (pytest.approx(0.5 * (5 + 1 + 1) / 3), 1)
    assert twin.step()[1] == 2
    assert task.net[0].mu[0] == 0
    task.statistics.update()
    assert task.net[0].mu[0] == 2.5


def test_another_process_moves_it_once_a_step():
    queue, task = FORKS.SimpleQueue(), Task(True)
    process = FORKS.Process(target=in_a_child, args=(task, queue))
    process.start()
    result = queue.get()
    process.join()
    assert result == (0.5, 1)
    assert task.net[0].rmax == 3  # tensors of another process share their memory


def test_a_copy_without_its_model_says_so():
    task = Task(False)
    statistics, net = copy.deepcopy(task.statistics), copy.deepcopy(task.net)
    net(torch.ones(4, 3, dtype=torch.float64))
    assert net[0].num_batches_tracked == 1  # the copied model moves at every forward
    with pytest.raises(RuntimeError, match=r"copy it in one object with the model"):
        statistics.update()


# ---- ranks ---------------------------------------------------------------------------------------

SHARES = [[4], [], [4, 4]]  # of every rank: the examples of its passes


def run_steps(shares, rank=0):
    """mu and sigma after three steps of 12 examples, the clipped fractions and an extra sum."""
    model = network()
    statistics = StepStatistics(model)
    statistics.measure_clipping = True
    start = sum(sum(share) for share in shares[:rank])
    x = images(12)[start : start + sum(shares[rank])]
    for _ in range(3):
        for part in x.split(shares[rank]) if len(x) else []:
            model(part)
        extra = statistics.update(torch.tensor([float(len(x)), 1.0]))
    clipped = torch.tensor(list(statistics.clipped_fractions().values()))
    return {**statistics_of(model), "clipped": clipped}, extra.tolist()


def run_training(x, **ddp):
    """mu, sigma and the gradients of the third of three steps, under DDP if it has options."""
    model = network(torch.float32)
    forward = DistributedDataParallel(model, **ddp) if ddp else model
    statistics = StepStatistics(model)
    for _ in range(3):
        model.zero_grad()
        forward(x).square().mean().backward()
        statistics.update()
    return {**statistics_of(model), **{name: p.grad for name, p in model.named_parameters()}}


def run_apart(rank):
    """mu of ranks that train two networks, 0 and 1 one of them, 2 the other; and what they are refused."""
    groups = [dist.new_group([0, 1]), dist.new_group([2])]
    layer, group = BatchRenorm1d(1, momentum=1.0), groups[rank // 2]
    statistics = StepStatistics(layer, process_group=group)
    layer(torch.full((4, 1), float(rank)))
    statistics.update()
    with pytest.raises(TypeError, match=r"StepStatistics\(model, process_group=...\)"):
        copy.deepcopy(statistics)
    with pytest.raises(ValueError, match="not in the process group"):
        StepStatistics(BatchRenorm1d(1), groups[1 - rank // 2])
    return layer.mu.item()


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    x = images(12, torch.float32).split(4)[rank]
    results = {f"ddp {broadcast}": run_training(x, broadcast_buffers=broadcast) for broadcast in (False, True)}
    torch.save(results | {"steps": run_steps(SHARES, rank), "apart": run_apart(rank)}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What :func:`run_rank` found on each of 3 gloo processes."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(run_rank, (str(folder),), nprocs=3, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


def test_ranks_with_unequal_shares_do_not_matter(ranks):
    """One rank, or three of which one has no example: the same mu and sigma on each."""
    alone, _ = run_steps([[8, 4]])
    for result in ranks:
        found, extra = result["steps"]
        assert extra == [12, 3]
        torch.testing.assert_close(found, ranks[0]["steps"][0], rtol=0, atol=0)
        torch.testing.assert_close(found, alone)


def test_a_process_group_shares_its_own_statistics(ranks):
    assert [result["apart"] for result in ranks] == [0.5, 0.5, 2.0]


@pytest.mark.parametrize("broadcast_buffers", [False, True])
def test_distributed_data_parallel(ranks, broadcast_buffers):
    """Whatever DDP does with the buffers, every rank has the statistics and gradients of one."""
    alone = run_training(images(12, torch.float32))
    for result in ranks:
        torch.testing.assert_close(result[f"ddp {broadcast_buffers}"], alone, rtol=1e-4, atol=1e-5)
