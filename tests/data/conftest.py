"""Small data sets in every format, written once."""

import pytest

from tests.data import imagenet_files


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return imagenet_files.write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Format -> the folder of a data set in it."""
    root = tmp_path_factory.mktemp("formats")
    return {
        "archives": imagenet_files.write_archives(root / "archives"),
        "arrow": imagenet_files.write_arrow(root / "arrow"),
        "parquet": imagenet_files.write_parquet(root / "parquet"),
        "flat": imagenet_files.write_flat(root / "flat"),
        "kaggle": imagenet_files.write_kaggle(root / "kaggle"),
    }
