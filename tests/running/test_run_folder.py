"""A run folder: one writer, nothing moved that is in use or no run, and what a power cut may leave of it."""

import random
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from batch_renorm import durable
from batch_renorm.records.curve import rewind
from batch_renorm.records.folder import Folder
from batch_renorm.running import cli
from batch_renorm.running.checkpoints import choose_checkpoint, load_weights, newest_readable
from batch_renorm.running.folder import claimed, prepare_folder, with_places
from tests.data.test_fuzz import HARMS, harmed
from tests.test_durable import in_use_by_another

CONFIG = {"seed": 0, "size": {"steps": 2}, "norm": {"eps": 1}, "minibatch": {"size": 8}, "folder": "x"}


@pytest.fixture
def folder(tmp_path):
    """A run that has begun."""
    result = Folder(tmp_path / "run")
    with claimed(result, fresh=False):
        prepare_folder(result, CONFIG)
    return result


def test_a_run_in_use_is_not_moved(train_command, folder):
    with in_use_by_another(folder.path) as process:
        for fresh in ("false", "true"):
            done = train_command(f"fresh={fresh}", check=False)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            line = f"error: the run folder {folder.path} is in use by process {process.pid} on "
            assert done.stderr.startswith(line)
    with claimed(folder, fresh=True):
        assert [path.name for path in folder.path.iterdir()] == [durable.LOCK]
    moved = folder.path.with_name("run.old")
    assert (moved / "config.yaml").exists()
    assert not (moved / durable.LOCK).exists()


@pytest.mark.parametrize("files", [["thesis.tex"], ["runs/a"], ["config.yaml", "data.csv"], ["config.yaml"]])
def test_fresh_moves_nothing_that_is_not_a_run(tmp_path, files):
    for name in files:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("port: 80\n")
    message = f"moves an earlier run aside, and {tmp_path}/mine"
    with pytest.raises(ValueError, match=message) as error, claimed(Folder(tmp_path / "mine"), fresh=True):
        pass
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_fresh_takes_the_folder_of_a_failed_start(tmp_path):
    run = Folder(tmp_path / "run")
    run.path.mkdir()
    for name in ("slurm.csv", "to-be-moved-aside-by-job-1", durable.LOCK):
        (run.path / name).touch()
    with claimed(run, fresh=True):
        assert (tmp_path / "run.old/slurm.csv").exists()


@pytest.mark.parametrize("left", [b"", b"\0\0\0\0", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_file_is_named_and_without_it_the_run_goes_on_from_its_checkpoint(folder, left):
    place = folder.path / "checkpoints"
    place.mkdir()
    torch.save({"config": CONFIG, "state_dict": {}}, place / "step00000001.ckpt")
    for path in (folder.config, folder.record_file):
        path.write_bytes(left)
        with pytest.raises(ValueError, match=f"{path} is damaged: delete it, and the same train.py command makes it"):
            prepare_folder(folder, CONFIG)
        path.unlink()
    prepare_folder(folder, CONFIG)
    assert choose_checkpoint(folder, CONFIG, torch.nn.Identity()) == (place / "step00000001.ckpt", [])
    assert yaml.safe_load(folder.config.read_text()) == CONFIG
    assert folder.record()["wall_seconds"] == 0
    folder.config.unlink()
    prepare_folder(folder, CONFIG | {"seed": 1})
    with pytest.raises(ValueError, match="is the checkpoint of another config; it differs in seed"):
        choose_checkpoint(folder, CONFIG | {"seed": 1}, torch.nn.Identity())


def test_a_damaged_curve_loses_no_row_in_silence(folder):
    head = "step,metric,value\n1,loss,2\n"
    folder.curve.write_bytes(head.encode() + b"2,loss,1\n3,lo\0\0\0\0\n")  # the end that was not durable yet
    rewind(folder.curve, 2)
    assert folder.curve.read_text() == head + "2,loss,1\n"
    folder.curve.write_bytes(head.encode() + b"2,lo\xff\n2,val_top1,1\n")
    with pytest.raises(ValueError, match=f"{folder.curve} is damaged in line 3: take that line out"):
        rewind(folder.curve, 2)
    folder.curve.unlink()
    rewind(folder.curve, 0)  # before the first row
    with pytest.raises(ValueError, match=f"{folder.curve} is missing, with its rows up to step 2"):
        rewind(folder.curve, 2)


def test_harmed_checkpoints_load_as_they_were_or_not_at_all(tmp_path):
    place, chance, damaged = tmp_path / "checkpoints", random.Random(3), 0
    place.mkdir()
    path, values = place / "step00000001.ckpt", {"x": torch.arange(200.0), "config": {"seed": 0}}
    torch.save(values, path)
    whole = path.read_bytes()
    for trial in range(100):
        path.write_bytes(harmed(whole, HARMS[trial % 5], chance))
        newest, bad = newest_readable(tmp_path)
        damaged += bad == [path]
        if newest is not None:
            held = torch.load(newest, weights_only=True)
            assert torch.equal(held["x"], values["x"])
            assert held["config"] == {"seed": 0}
    assert damaged > 60


def test_a_checkpoint_of_other_weights_is_named_with_what_differs(tmp_path):
    """A run does not go on from it, as after an update that names layers otherwise, while the config is the same."""
    path, network = tmp_path / "checkpoints/step00000001.ckpt", torch.nn.Linear(2, 4)
    path.parent.mkdir()
    with pytest.raises(ValueError, match="there is no checkpoint"):
        load_weights(network, path)
    other = {"old.weight": torch.zeros(4, 2), "bias": torch.zeros(4)}
    for held, how in (
        (
            {"state_dict": torch.nn.Linear(2, 3).state_dict()},
            r"weight has the shape .3,.* instead of .4,.* .and 1 other",
        ),
        ({"config": CONFIG, "state_dict": other}, "it lacks weight .and 1 other differences."),
        ({"weights": 1}, "it lacks 'state_dict'"),
    ):
        torch.save(held, path)
        with pytest.raises(ValueError, match=f"{path} is not a checkpoint of this run: {how}"):
            load_weights(network, path)
        with pytest.raises(ValueError, match=f"{path} is not a checkpoint of this run's network: {how}.*fresh=true"):
            choose_checkpoint(Folder(tmp_path), CONFIG, network)


NASTY = [
    "~/imagenet", "/data/date=2012/x", "/a b/c", "/a,b", "/a (copy)", "/a[1]", "/a{b}", '/a"b"', "/a'b'", "/jürgen/x",
    "/a:b;c&d", "C:\\data\\", "/a#b!", "5", "true", "null", "/a\\", "/a\tb", "[a,b]", "glob(x)", "/^a`b`<c>",
]  # fmt: skip


def read_back(arguments):
    return [cli.parsed(argument).value() for argument in arguments]


def test_paths_are_taken_as_people_write_them():
    for name in ("folder", "data.root", "+data.root"):
        for value in NASTY:
            assert read_back(cli.as_hydra_reads([f"{name}={value}"])) == [value], value
    chance = random.Random(4)
    for _ in range(200):
        value = "/" + "".join(chance.choice("ab/ ,=()[]{}'\"~!#$%&:;<>?@^`|äß") for _ in range(8))
        assert read_back(cli.as_hydra_reads([f"data.root={value}"])) == [value], value
    read = ["data.root='/a b'", 'folder="/a=b"', "seed=3"]
    assert cli.as_hydra_reads(read) == read
    assert cli.as_hydra_reads(["-m", "data.root=/a,/b"])[1] == "data.root=/a,/b"  # two jobs


def test_a_value_that_hydra_cannot_read_is_named_with_the_form_that_works():
    for value in ("a(b", "a=b", "x)", "ü", "a[", 'say "x"', "C:\\"):
        message = cli.unread(f"data.name={value}")
        assert message.startswith("the value of data.name has characters that mean something to Hydra")
        (argument,) = shlex.split(message.partition("in the shell ")[2])
        assert read_back([argument]) == [value]
    assert cli.unread("experiment") == "options are name=value, got 'experiment'"


def test_homes_are_found_and_nothing_is_empty(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = {"folder": "~/runs/a", "data": {"root": "~/imagenet"}}
    assert with_places(settings) == {"folder": "/home/me/runs/a", "data": {"root": "/home/me/imagenet"}}
    assert with_places({"folder": "a", "data": {}}) == {"folder": "a", "data": {}}
    for wrong, name in (({"folder": ""}, "folder"), ({"folder": " "}, "folder"), ({"data": {"root": ""}}, "data.root")):
        with pytest.raises(ValueError, match=rf"^{name}= is empty: say {name}=PATH"):
            with_places(settings | wrong)


@pytest.fixture
def places_of(run_script, monkeypatch, tmp_path):
    """Where the jobs of a command would train, without training."""
    places = []
    monkeypatch.chdir(tmp_path)  # in the repository a finished run may be there, which is told and not trained
    monkeypatch.setattr("batch_renorm.running.run.train", lambda config: places.append(config["folder"]))

    def of(*arguments):
        code, _, err = run_script("train.py", *arguments, f"hydra.sweep.dir={tmp_path}")
        assert code == 0, err
        return places

    return of


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ramp.rmax=4"], ["noniid_renorm/seed0"]),
        (["-m", "seed=0,1"], ["noniid_renorm/seed0", "noniid_renorm/seed1"]),
        (["-m", "experiment=iid_renorm,iid_batchnorm", "size.steps=9"], ["iid_renorm/seed0", "iid_batchnorm/seed0"]),
        (["-m", "ramp.rmax=3,5"], ["noniid_renorm,ramp.rmax=3/seed0", "noniid_renorm,ramp.rmax=5/seed0"]),
        (
            ["--multirun", "norm=batchnorm,renorm", "seed=2", "data.contrast=[0.1,0.2],[0.3,0.4]", "size.steps=9"],
            [
                f"noniid_renorm,data.contrast=_{window}_,norm={norm}/seed2"
                for norm in ("batchnorm", "renorm")
                for window in ("0.1,0.2", "0.3,0.4")
            ],
        ),
        (["-m", "ramp=paper,none", "folder='x/${swept:}'"], ["x/,ramp=paper", "x/,ramp=none"]),
    ],
)  # fmt: skip
def test_every_job_of_a_sweep_has_a_place_of_its_own(places_of, arguments, expected):
    assert places_of(*arguments) == [place if place.startswith("x/") else f"runs/glyphs/{place}" for place in expected]


def test_long_sweeps_have_names_that_a_file_system_takes(places_of):
    value = [number / 7 for number in range(40)]
    places = set(places_of("-m", f"data.contrast={value},[0,1]".replace(" ", "")))
    assert [max(map(len, Path(place).parts)) < 200 for place in places] == [True, True]
