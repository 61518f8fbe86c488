"""Small data sets in every format, written once."""

import pytest

from batch_renorm.data import store
from batch_renorm.data.sources import find
from tests.data import imagenet_files


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return imagenet_files.write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="session")
def written(folders, tmp_path_factory):
    """Format -> the folder of a data set in it; a store of it has 5 images a file."""
    root = tmp_path_factory.mktemp("formats")
    store.prepare(find(folders), root / "store", 5, 1, lambda images: None)
    return {
        "archives": imagenet_files.write_archives(root / "archives"),
        "arrow": imagenet_files.write_arrow(root / "arrow"),
        "parquet": imagenet_files.write_parquet(root / "parquet"),
        "flat": imagenet_files.write_flat(root / "flat"),
        "kaggle": imagenet_files.write_kaggle(root / "kaggle"),
        "store": root / "store",
    }
