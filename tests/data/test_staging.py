"""Where a data set is read from once slurm/train.sbatch has copied it to the node."""

import pytest

from batch_renorm.data.sources import on_this_node


@pytest.fixture
def copied(tmp_path, monkeypatch):
    for name in ("shared", "local"):
        (tmp_path / name / "imagenet").mkdir(parents=True)
    monkeypatch.setenv("STAGE", str(tmp_path / "shared"))
    monkeypatch.setenv("STAGED", str(tmp_path / "local"))
    return tmp_path


@pytest.mark.parametrize("below", ["", "imagenet"])
def test_the_copy_is_read_and_the_rest_kept(copied, below):
    data = {"root": str(copied / "shared" / below), "size": 299}
    assert on_this_node(data) == {"root": str(copied / "local" / below), "size": 299}


def test_without_a_copy_the_original_is_read(copied, monkeypatch):
    data = {"root": str(copied / "shared/imagenet")}
    monkeypatch.setenv("STAGED", str(copied / "absent"))
    assert on_this_node(data) is data
    monkeypatch.delenv("STAGE")
    assert on_this_node(data) is data


@pytest.mark.parametrize("data", [{"root": "/elsewhere"}, {"labels": 40}])
def test_a_copy_that_nothing_reads_is_an_error(copied, data):
    with pytest.raises(ValueError, match="is copied to the nodes, but"):
        on_this_node(data)
