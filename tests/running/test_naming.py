"""A data set of one's own has a name, in the runs' place, tags and group; what is not ImageNet is not called so."""

import pytest

from batch_renorm.records.naming import dataset_of, run_group, tags_of


@pytest.mark.parametrize(
    ("options", "dataset", "place"),
    [
        ([], "glyphs", "glyphs"),
        (["scale=glyphs32"], "glyphs", "glyphs32"),
        (["scale=imagenet", "data.root=/data/ilsvrc"], "imagenet", "imagenet"),
        (["data=cifar100"], "cifar100", "glyphs-cifar100"),
        (["scale=imagenet", "data=folder", "data.root=/data/my cars/"], "my_cars", "imagenet-my_cars"),
        (["scale=imagenet", "data.root=/data/a-tenth", "data.train_images=128116"], "a-tenth", "imagenet-a-tenth"),
        (["data=folder", "data.root=/x/y", "dataset=cars"], "cars", "glyphs-cars"),
        (["data=folder", "data.root=/x/glyphs"], "glyphs-folder", "glyphs-glyphs-folder"),
    ],
)
def test_the_data_set_is_in_the_runs_place_group_and_tags(compose, options, dataset, place):
    config = compose("experiment=iid_renorm", *options)
    assert config["dataset"] == dataset
    assert config["folder"] == f"runs/{place}/iid_renorm/seed0"
    assert run_group(config) == place
    assert {dataset, config["scale"], "iid_renorm"} <= set(tags_of(config))


@pytest.mark.parametrize(
    ("labels", "dataset"), [(50, "cars-50"), ("lists/fast ones.txt", "cars-fast_ones"), (None, "cars")]
)
def test_a_part_of_the_labels_is_another_data_set(labels, dataset):
    assert dataset_of({"_target_": "batch_renorm.data.images.Images", "root": "~/cars", "labels": labels}) == dataset


def test_tags_are_once_each_and_the_users_are_among_them(compose):
    config = compose("model=timm", "model.name=resnet18", "norm=batchnorm")
    tags = tags_of(config, ["mine", "resnet18", "x" * 99])
    assert tags[-3:] == ["resnet18", "mine", "x" * 64]
    assert len(tags) == len(set(tags))
