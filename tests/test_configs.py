"""Every experiment at every scale composes; options are all read, and wrong ones explained."""

import errno

import hydra
import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from batch_renorm.errors import TransientReadError, UserError
from batch_renorm.norm import BatchRenorm2d
from batch_renorm.norm.layers import layers_of
from batch_renorm.records.config import flat_options
from batch_renorm.records.curve import read_rows
from batch_renorm.reporting import paper
from batch_renorm.running.build import build
from batch_renorm.running.cli import composition, explained
from batch_renorm.running.schema import read
from tests.conftest import ROOT, TINY
from tests.running.runs import trained

EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))
SCALES = sorted(path.stem for path in (ROOT / "configs/scale").glob("*.yaml"))
FACTS = {  # norm, images per label, group; the paper's are of sections 4.1 to 4.3
    "iid_batchnorm": ("batchnorm", None, 32),
    "iid_renorm": ("renorm", None, 32),
    "micro4_batchnorm": ("batchnorm", None, 4),
    "micro4_renorm": ("renorm", None, 4),
    "noniid_batchnorm": ("batchnorm", 2, 32),
    "noniid_halves_batchnorm": ("batchnorm", 2, 16),
    "noniid_renorm": ("renorm", 2, 32),
    "iid_groupnorm": ("groupnorm", None, 32),
    "micro4_groupnorm": ("groupnorm", None, 4),
    "noniid_groupnorm": ("groupnorm", 2, 32),
    "micro4_frozen": ("frozen", None, 4),
    "noniid_frozen": ("frozen", 2, 32),
}


def test_the_papers_seven_experiments_and_ours():
    assert sorted(FACTS) == EXPERIMENTS
    assert set(paper.EXPERIMENTS) == {name for name, (norm, *_) in FACTS.items() if norm in ("batchnorm", "renorm")}


@pytest.mark.parametrize("scale", SCALES)
def test_experiments_differ_in_norm_and_regime_alone(compose, scale):
    root = "/data" if scale == "imagenet" else "/data/tiny-imagenet-200"
    options = [f"scale={scale}", *([f"data.root={root}"] if "imagenet" in scale else [])]
    configs = {experiment: compose(f"experiment={experiment}", *options) for experiment in EXPERIMENTS}
    base = configs["iid_batchnorm"]
    for experiment, config in configs.items():
        norm, minibatch = config["norm"], config["minibatch"]
        if scale == "imagenet":
            assert (norm["name"], minibatch["images_per_label"], minibatch["group"]) == FACTS[experiment]
        assert config["folder"] == f"runs/{scale}/{experiment}/seed0"
        for section in config.keys() - {"norm", "minibatch", "experiment", "folder"}:
            assert config[section] == base[section], section


def test_imagenet_is_the_papers_setting(compose):
    config = compose("scale=imagenet", "data.root=/data")
    assert config["size"]["workers"] * config["minibatch"]["size"] == 1600
    for section, expected in {
        "ramp": {"start": 5000, "dmax_end": 25000, "rmax_end": 40000, "rmax": 3, "dmax": 5},
        "optim": {
            "lr": 0.045, "lr_decay": 0.94, "lr_decay_steps": 1601, "decay": 0.9, "momentum": 0.9, "eps": 1.0,
            "clip_norm": 2.0, "weight_decay": 4e-5,
        },
        "loss": {"label_smoothing": 0.1, "aux_weight": 0.4},
        "average": {"decay": 0.9999},
        "norm": {"eps": 1e-3, "alpha": 0.01},
        "evaluation": {"labels_per_minibatch": 25, "images_per_label": 2},
        # TF-slim's Inception-v3, on which the paper builds, keeps 0.8
        "model": {"name": "inception_v3", "aux_logits": True, "drop_rate": 0.2},
    }.items():  # fmt: skip
        assert config[section] | expected == config[section]
    ramp = compose("size.steps=1400")["ramp"]  # scales with the run
    assert (ramp["start"], ramp["dmax_end"], ramp["rmax_end"]) == (50, 250, 400)


@pytest.mark.parametrize(("minibatch", "labels"), [(32, 25), (16, 12), (8, 6), (2, 1), (1, 1)])
def test_batch_statistics_are_evaluated_in_the_papers_proportion(compose, minibatch, labels):
    """It trains on 16 labels x 2 and evaluates on 25 labels x 2."""
    config = compose(f"size.minibatch={minibatch}", "minibatch=iid")
    assert (config["evaluation"]["labels_per_minibatch"], config["evaluation"]["images_per_label"]) == (labels, 2)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_two_tiny_steps_and_lightnings_profile_of_them(compose, tmp_path, experiment):
    options = [*TINY, "data.labels=24", "trainer.profile=simple"]
    folder = trained(compose(*options, f"experiment={experiment}"), tmp_path)
    assert "run_training_epoch" in next(tmp_path.glob("fit-profile*")).read_text()
    metrics = {metric for _, metric, _ in read_rows(folder.curve)}
    assert {"val_top1", "val_top5", "train_top1", "loss", "lr"} <= metrics
    of_groups = {
        "val_top1_batch_statistics", "val_top1_as_trained", "val_top1_no_counterpart", "activation_distance", "rmax",
        "dmax",
    }  # fmt: skip
    assert of_groups & metrics == (of_groups if experiment in paper.EXPERIMENTS else set())
    assert ("r_clipped" in metrics) == ("renorm" in experiment)


def test_only_some_evaluations_measure_on_minibatches(compose, tmp_path):
    """The last one is always whole."""
    folder = trained(compose(*TINY, "size.steps=10", "evaluation.minibatches_every=2"), tmp_path)
    rows = read_rows(folder.curve)
    steps_of = {metric: [step for step, name, _ in rows if name == metric] for _, metric, _ in rows}
    assert steps_of["val_top1"] == [2, 4, 6, 8, 10]
    for kind in ("batch_statistics", "no_counterpart", "as_trained"):
        assert steps_of[f"val_top1_{kind}"] == [4, 8, 10]


@pytest.mark.slow
def test_a_step_of_the_papers_network(compose, tmp_path):
    """Inception-v3 at 299 pixels with its auxiliary head, in the trainer's own step, on few images."""
    config = compose(
        *TINY, "scale=imagenet", "data=glyphs", "data.size=299", "data.labels=2", "minibatch.size=2",
        "minibatch.group=2", "data.val_images=2", "evaluation.labels_per_minibatch=1", "evaluation.batch_size=4",
        "size.train_sample=2", "size.workers=1", "size.minibatch=2", "size.steps=1",
    )  # fmt: skip
    rows = trained(config, tmp_path).curve.read_text()
    assert ",val_top1," in rows
    assert "r_clipped/Mixed_7c.branch_pool.bn" in rows


def test_every_norm_of_inception_v3_is_ours_and_gamma_is_fixed(compose):
    config = compose("scale=imagenet", "data=glyphs", "data.size=107", "data.labels=50")
    model = build(config).training.model
    norms = layers_of(model).values()
    assert len(norms) == 96
    assert all(norm.weight is None and norm.eps == 1e-3 and norm.group_size == 32 for norm in norms)
    assert not any("BatchNorm" in type(module).__name__ for module in model.modules())


def test_groupnorm_takes_the_place_of_every_norm_and_sees_no_group(compose):
    """An image's answer is the same in any minibatch, also in training. Wrong options are named."""
    config = compose("experiment=noniid_groupnorm", *TINY)
    model = build(config).training.model.train()
    images = torch.randn(6, 1, 16, 16)
    torch.testing.assert_close(model(images)[:2], model(images[:2]), rtol=1e-4, atol=1e-5)
    norms = {m.num_channels: m.num_groups for m in model.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert norms == {16: 1, 24: 1, 48: 3, 80: 5, 256: 16}
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    with pytest.raises(ValueError, match=r"nothing reads the option norm\.gruops"):
        build(config | {"norm": config["norm"] | {"gruops": 4}})
    with pytest.raises(ValueError, match=r"norm\.channels_per_group must be greater than 0, got 0"):
        build(config | {"norm": config["norm"] | {"channels_per_group": 0}})


def test_no_option_is_ignored(compose):
    """Each section's constructor takes every key it is given, and refuses one more."""
    config = compose(*TINY)
    build(config)
    sections = [name for name, value in config.items() if isinstance(value, dict)]
    for section in sections:
        wrong = config | {section: config[section] | {"no_such_thing": 1}}
        with pytest.raises(ValueError, match=f"nothing reads the option {section}.no_such_thing"):
            build(wrong)
    with pytest.raises(ValueError, match="nothing reads the option sized; did you mean size"):
        build(config | {"sized": 1})


def test_a_short_run_is_a_few_steps_in_its_own_place(compose):
    config = compose("debug=true", "scale=imagenet", "data.root=/data/ilsvrc")
    assert (config["size"]["steps"], config["size"]["evaluate_every"], config["fresh"]) == (4, 4, True)
    assert config["folder"] == "runs/debug/imagenet/noniid_renorm/seed0"


@pytest.fixture
def complaint(run_script, monkeypatch, tmp_path):
    """What train.py prints on stderr for a wrong command, run in this process."""
    monkeypatch.chdir(tmp_path)

    def of(*arguments):
        status, _, err = run_script("train.py", *arguments)
        (line,) = [line for line in err.splitlines() if not line.endswith("loading torch")]
        assert status == 2
        return line

    return of


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["experiment=noniid_renrom"], "no experiment=noniid_renrom; did you mean noniid_renorm"),
        (["scale=imagnet"], "no scale=imagnet; did you mean imagenet"),
        (["optim.lrr=1"], "no option optim.lrr; did you mean optim.lr"),
        (["sede=1"], "no option sede; did you mean seed"),
        (["+size.stepps=1"], "nothing reads the option size.stepps; did you mean steps"),
        (["minibatch.group=5"], "a minibatch of 16 does not divide into groups of 5"),
        (["ramp.start=100", "ramp.rmax_end=50"], "100"),
        (["trainer.devices=9", "size.workers=2"], "9 ranks but only 2 workers"),
        (["folder=/proc/none"], "cannot write the run folder /proc/none"),
        (["seed=-1"], "seed must be greater than or equal to 0, got -1"),
        (["optim.lr=fast"], "optim.lr must be a number, got 'fast'"),
        (["+logger.online=1"], "nothing reads the option logger.online"),
        (["logger=offline", "logger.wandb.mode=on"], "logger.wandb.mode must be 'offline' or 'online', got 'on'"),
        (["logger=offline", "logger.wandb.tags=mine"], "logger.wandb.tags must be a list, got 'mine'"),
        (["fresh=no"], "fresh must be true or false, got 'no'"),
        (["debug=maybe"], "no debug=maybe; there are false, true"),
        (["logger=false"], "no logger=false; there are csv, offline, wandb"),
        (["seed=${oc.decode:'1.5'}"], "seed must be a whole number, got 1.5"),
        (["seed=${oc.env:SEED}"], "got '3', which is text; a number from the environment is seed=${oc.decode:"),
        (["trainer.precision=16"], "trainer.precision must be 'auto', 32 or 'bf16', got 16"),
        (["trainer.compile=yes"], "trainer.compile must be true or false or 'auto',"),
        (["optim._target_=torch.optim.Nothing"], "optim._target_='torch.optim.Nothing' cannot be used"),
        (["minibatch=halves", "size.minibatch=7"], "size.minibatch must be even"),
        (
            ["data.labels=10"],
            "24 images with different labels, and the validation images have 10 labels: "
            "evaluation.labels_per_minibatch times evaluation.images_per_label must be as many or fewer",
        ),
        (
            ["data.train_images=1"],
            "has 1 training images, and minibatches have 2 of a label (minibatch.images_per_label)",
        ),
        (["data.val_images=1"], "give no minibatch of 12 labels x 2 images"),
        (["size.steps=soon"], "size.steps"),
        (["scale=imagenet"], "data.root"),
        (["trainer.threads=5000"], "trainer.threads=5000 for "),
    ],
)
def test_wrong_commands_get_one_clear_line(complaint, monkeypatch, arguments, answer):
    monkeypatch.setenv("SEED", "3")
    line = complaint(*(["logger=csv", "data.labels=40"] if "scale=imagenet" not in arguments else []), *arguments)
    assert line.startswith("error: ")
    assert answer in line


BODY = "ramp: {rmax: 10.0}\nexperiment: wide\n"
NO_HEADER = "error: the file of experiment=mine must begin with the line `# @package _global_`"


@pytest.mark.parametrize(
    ("text", "encoding", "answer"),
    [
        (BODY, "utf-8", NO_HEADER),
        (f"\ufeff# @package _global_\n{BODY}", "utf-8", NO_HEADER),
        (f"defaults: [override /norm: renorm]\n{BODY}", "utf-8", NO_HEADER),
        (f"# @package _global_\n# für mich\n{BODY}", "latin-1", "experiment/mine.yaml is not UTF-8 text"),
    ],
)
def test_an_experiment_that_cannot_be_read_is_named(complaint, tmp_path, text, encoding, answer):
    """A file without its header is easily overlooked: hydra-ecosystem/hydra issue 2628."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(text, encoding=encoding)
    assert answer in complaint(f"--config-dir={tmp_path}", "experiment=mine", "logger=csv")


CHOICES = {  # of each group's files, those whose options differ
    "norm": ["renorm", "batchnorm", "groupnorm"], "minibatch": ["pairs", "iid"], "ramp": ["paper"],
    "optim": ["rmsprop"], "trainer": ["auto"], "logger": ["offline", "csv"],
    "model": ["glyph_inception", "inception_v3", "timm"], "data": ["glyphs", "imagenet", "cifar100"],
    "scale": ["glyphs", "imagenet"],
}  # fmt: skip
ODD = [0, -1, float("nan"), float("inf"), "text", "", None, [1], True, 10**30]


@pytest.mark.parametrize("group", CHOICES)
def test_any_value_of_any_option_is_allowed_or_refused_in_a_line_that_names_it(group):
    """Before anything is made: no value ends in a traceback. With `scale` also what belongs to no group."""
    tried = refused = 0
    for choice in CHOICES[group]:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            root = ["data.root=/data"] if choice == "imagenet" else []
            config = hydra.compose("train", [f"{group}={choice}", *root])
        for name, _ in flat_options(OmegaConf.to_container(config)):
            if group != (name.partition(".")[0] if name.partition(".")[0] in CHOICES else "scale"):
                continue
            parent, _, key = name.rpartition(".")
            section = OmegaConf.select(config, parent) if parent else config
            before = OmegaConf.to_container(section)[key]
            for value in ODD:
                section[key], tried = value, tried + 1
                try:
                    read(OmegaConf.to_container(config, resolve=True))
                except (UserError, OmegaConfBaseException) as error:
                    line, refused = composition(error), refused + 1
                    assert name in line, (name, value, line)
                    assert "\n" not in line
            section[key] = before
    assert tried / 3 < refused < tried


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a bad option"), 2, "error: a bad option"),
        (TransientReadError("cannot read /a: later, perhaps"), 75, "error: cannot read /a: later, perhaps"),
        (OSError(errno.ESTALE, "Stale file handle", "/data/a"), 75, "error: /data/a: Stale file handle; this may pass"),
        (OSError(errno.EACCES, "Permission denied", "/a"), 2, "error: cannot read or write /a: Permission denied"),
        (OSError(errno.EBADF, "Bad file descriptor", "/a"), None, ""),
        (ValueError("a bug of any library"), None, ""),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_a_bug_has_its_traceback(monkeypatch, capsys, error, status, line):
    """In a job of submitit's an exit would be the end without a reason; the exception travels."""
    with pytest.raises(SystemExit if status else type(error)) as stopped, explained():
        raise error
    assert getattr(stopped.value, "code", None) == status
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == bool(line)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(type(error)), explained():
        raise error
    assert capsys.readouterr().err == said


def plain(channels):
    return torch.nn.BatchNorm2d(channels)


def with_averages(channels):
    return torch.nn.InstanceNorm2d(channels, track_running_stats=True)


class OfThePass(torch.nn.Module):
    """Batchnorm written by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


def in_groups(channels: int, group_size: int, eps: float):
    return BatchRenorm2d(channels, eps=eps, group_size=group_size)


def centred(channels: int, group_size: int):
    return torch.nn.Sequential(BatchRenorm2d(channels, group_size=group_size), OfThePass(channels))


@pytest.mark.parametrize("norm", ["plain", "with_averages", "OfThePass", "centred"])
def test_a_norm_that_sees_whole_passes_is_refused(compose, norm):
    """Its statistics would depend on the numbers of passes and ranks, and minibatch.group would have no effect."""
    config = compose("minibatch=micro4", *TINY) | {"norm": {"_target_": f"tests.test_configs.{norm}", "name": "mine"}}
    with pytest.raises(UserError, match=r"norm=mine: .* and not with its group .* make it from BatchRenorm2d"):
        build(config)


def test_a_norm_of_ones_own_gets_the_group_and_follows_the_ramp(compose):
    config = compose("minibatch=micro4", *TINY)
    own = {"_target_": "tests.test_configs.in_groups", "name": "mine", "eps": 1e-3}
    training = build(config | {"norm": own}).training
    assert {layer.group_size for layer in layers_of(training.model).values()} == {4}
    assert training.limits(10**6) == (3.0, 5.0)
    with pytest.raises(UserError, match=r"norm\.eps must be a number, got 'small'"):
        build(config | {"norm": own | {"eps": "small"}})
    with pytest.raises(UserError, match="norm: eps must be positive"):  # the layer's own ValueError
        build(config | {"norm": own | {"eps": -1.0}})


def test_a_torch_optimiser_is_one_file(compose):
    """Its options are checked by its signature, and by itself; weight decay is of the weights alone."""
    shared = {"lr": 1e-3, "lr_decay": 1.0, "lr_decay_steps": 1, "weight_decay": 0.05, "clip_norm": float("inf")}
    adamw = {"_target_": "torch.optim.AdamW", "betas": [0.9, 0.98], **shared}
    config = compose(*TINY)
    training = build(config | {"optim": adamw}).training
    optimizer = training.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    for option, value, message in (
        ("beta", 1, "nothing reads the option optim.beta; did you mean betas"),
        ("betas", [0.9], r"optim\.betas must be a longer list, got \[0.9\]"),
        ("betas", [0.9, 1.5], "optim: Invalid beta parameter"),
        ("clip_norm", 0, r"optim\.clip_norm must be greater than 0, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            build(config | {"optim": adamw | {option: value}})


def test_no_bound_is_a_fair_wish(compose):
    ramp = build(compose("ramp.rmax=inf", "ramp.dmax=inf", "ramp.start=2", *TINY, "size.steps=100")).training.ramp
    assert (ramp(2), ramp(10**6)) == ((1.0, 0.0), (float("inf"), float("inf")))
