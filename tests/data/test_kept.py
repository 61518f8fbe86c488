"""Evaluation's images: prepared once, kept as far as there is room, the same whatever the room and the processes."""

import multiprocessing

import numpy as np
import pytest
import torch

from batch_renorm.data import kept as kept_images
from batch_renorm.data.images import Images
from batch_renorm.data.kept import KeptImages

VISITS = [
    ("val", np.arange(8)), ("train", np.array([3, 9])), ("val", np.array([5, 0, 7, 2])), ("val", np.array([1, 6])),
]  # fmt: skip


def pixels(kept, visits=VISITS):
    return [(fetched.pixels.clone(), labels.tolist()) for fetched, labels in kept.visit(visits)]


@pytest.fixture
def loader_processes():
    """The processes that a test has started and that still run."""
    before = {process.pid for process in multiprocessing.active_children()}
    return lambda: {process.pid for process in multiprocessing.active_children()} - before


@pytest.fixture
def source(folders, monkeypatch):
    monkeypatch.setattr(kept_images, "AT_ONCE", 3)
    return Images(str(folders), 32)


@pytest.mark.parametrize(("room", "first", "again"), [(None, 10, 0), (0, 16, 16), (4, 13, 9), (9, 10, 1)])
@pytest.mark.parametrize("processes", [0, 2])
def test_images_are_those_of_the_source_in_every_visit(
    source, room, first, again, processes, loader_processes, monkeypatch
):
    """`again` are prepared at every later evaluation: what there is no room for, once for each visit."""
    room = None if room is None else room * source.image_bytes + 5
    kept, asked = KeptImages(source, processes, room), []
    load = kept._load
    monkeypatch.setattr(kept, "_load", lambda visits: (asked.extend(visits), load(visits))[1])
    expected = [(source.fetch(split, i, None).pixels, source.labels(split)[i].tolist()) for split, i in VISITS]
    for prepared in (first, first + again):
        for (got, labels), (wanted, theirs) in zip(pixels(kept), expected, strict=True):
            assert torch.equal(got, wanted)
            assert labels == theirs
        assert sum(len(indices) for _, indices in asked) == prepared
    assert room is None or sum(image.nbytes for image in kept.kept.values()) <= room
    assert len(loader_processes()) == (processes if again else 0)  # nothing left to prepare: no processes
    other = [("train", np.array([0, 1, 2]))]
    assert torch.equal(pixels(kept, other)[0][0], source.fetch("train", np.arange(3), None).pixels)


def test_one_set_of_processes_serves_all_evaluations(source, loader_processes):
    kept = KeptImages(source, 1, room=0)
    pixels(kept)
    processes = loader_processes()
    assert len(processes) == 1
    pixels(kept, VISITS[:2])
    assert loader_processes() == processes
    kept.close()
    assert not loader_processes()


def test_an_evaluation_that_ends_early_leaves_nothing_half_kept(source):
    kept = KeptImages(source)
    visit = kept.visit(VISITS)
    next(visit)
    visit.close()
    assert torch.equal(pixels(kept)[2][0], source.fetch("val", VISITS[2][1], None).pixels)


def test_images_made_on_the_device_are_not_kept(glyph_options):
    from batch_renorm.data.glyphs import Glyphs

    source = Glyphs(**glyph_options)
    kept = KeptImages(source)
    (fetched, labels), _ = kept.visit([("val", np.array([4, 2])), ("val", np.array([1]))])
    assert torch.equal(fetched, source.fetch("val", np.array([4, 2])))
    assert labels.tolist() == source.labels("val")[[4, 2]].tolist()
    assert not kept.kept
