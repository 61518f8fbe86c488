"""What a data set of one's own has to have, and what it gets without saying more."""

import numpy as np
import pytest
import torch

from batch_renorm.data.loaders import Batches, Source, check_source, loader
from batch_renorm.errors import UserError


class Mine(Source):
    """Images that a file would have, as tensors of float32."""

    classes, channels, size = 3, 1, 4

    def labels(self, split):
        return np.arange(6 if split == "train" else 3, dtype=np.int64) % 3

    def fetch(self, split, indices, draw):
        return torch.from_numpy(indices).float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4) + 0.5

    def images(self, fetched, device):
        return torch.cat(fetched).to(device)


def test_a_data_set_of_ones_own_gets_loader_processes():
    source = Mine()
    check_source(source, "mine.Mine")
    assert source.needs_loader_processes
    assert source.image_bytes == 4 * 1 * 4 * 4
    first, second = loader(Batches(source, [("val", np.array([2, 0])), ("train", np.array([5, 0, 1]))]), 1)
    assert torch.equal(first[0], source.fetch("val", np.array([2, 0]), None))
    assert torch.equal(second[0], source.fetch("train", np.array([5, 0, 1]), None))
    assert second[1].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("members", "answer"),
    [
        ({"size": None}, "has size=None: it must be a whole number of at least 1"),
        ({"classes": 2}, "has 2 classes, so its train labels are 0 to 1, one an image; they are 0 to 2"),
        ({"labels": lambda self, split: [0, 1, 2]}, "must give the train labels as a NumPy array, .images,. int64"),
        ({"labels": lambda self, split: np.empty(0, np.int64)}, "they are none"),
    ],
)
def test_a_wrong_member_is_named(members, answer):
    with pytest.raises(UserError, match=f"the data set mine.Mine .*{answer}"):
        check_source(type("Mine", (Mine,), members)(), "mine.Mine")


def test_what_a_class_lacks_is_named():
    members = {name: member for name, member in vars(Mine).items() if not name.startswith("_") and name != "images"}
    with pytest.raises(TypeError, match=r"abstract class Forgot .*images"):
        type("Forgot", (Source,), members)()
    with pytest.raises(
        UserError, match=r"the data set mine\.Other must derive from batch_renorm\.data\.loaders\.Source"
    ):
        check_source(type("Other", (), members)(), "mine.Other")
