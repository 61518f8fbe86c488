"""Contract 1: the minibatch of (seed, step, worker) is a function, and each regime is the paper's."""

import numpy as np
import pytest

from batch_renorm.data.minibatches import Iid, LabelsTimesImages, distinct_minibatches, paired_minibatches, regime

LABELS = np.repeat(np.arange(40), 13)
RNG = np.random.default_rng(0)


def minibatches(draw, seed, steps, workers):
    return np.stack([[draw(seed, step, worker) for worker in range(workers)] for step in range(steps)])


@pytest.mark.parametrize("images_per_label", [None, 2, 4])
def test_same_arguments_same_images_in_any_order(images_per_label):
    draw = regime(LABELS, 32, 3, images_per_label)
    forward = {(step, worker): draw(7, step, worker) for step in range(5) for worker in range(3)}
    again = regime(LABELS, 32, 3, images_per_label)
    for key in RNG.permutation(sorted(forward)):
        np.testing.assert_array_equal(again(7, *key), forward[tuple(key)])


@pytest.mark.parametrize("images_per_label", [None, 2])
def test_seed_step_and_worker_all_matter(images_per_label):
    draw = regime(LABELS, 32, 3, images_per_label)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_iid_epoch_visits_every_image_once():
    """520 images in steps of 3 x 32: the first epoch ends within the sixth step."""
    stream = minibatches(Iid(len(LABELS), 32, 3), 5, 11, 3).reshape(-1)
    first, second = stream[:520], stream[520:1040]
    assert sorted(first) == sorted(second) == list(range(520))
    assert (first != second).any()


def test_labels_with_replacement_and_distinct_images_of_each():
    draw = LabelsTimesImages(LABELS, 32, 2)
    rows = minibatches(draw, 0, 50, 2).reshape(-1, 2, 16)
    labels = LABELS[rows]
    np.testing.assert_array_equal(labels[:, 0], labels[:, 1])  # both halves hold the same labels
    assert (rows[:, 0] != rows[:, 1]).all()
    repeated = np.mean([len(set(row)) < 16 for row in labels[:, 0]])
    assert repeated > 0.9  # 16 of 40 with replacement repeat one but for 1.4% of minibatches
    assert len(set(labels.reshape(-1))) == 40


def test_labels_and_images_are_uniform():
    """100,000 draws of 4 images a label: each image within five standard deviations of its share."""
    rows = minibatches(LabelsTimesImages(LABELS, 40, 4), 3, 500, 5)
    counts = np.bincount(rows.reshape(-1), minlength=len(LABELS))
    expected = rows.size / len(LABELS)
    assert abs(counts - expected).max() < 5 * np.sqrt(4 * expected)


def test_halves_put_the_images_of_a_label_apart():
    """With groups of 16 the two images of a label never meet, unless the label was drawn twice."""
    row = LabelsTimesImages(np.repeat(np.arange(100_000), 2), 32, 2)(0, 0, 0)
    assert set(row[:16] // 2) == set(row[16:] // 2)
    assert len(set(row[:16] // 2)) == 16


def test_unsorted_labels():
    shuffled = RNG.permutation(LABELS)
    row = LabelsTimesImages(shuffled, 32, 2)(0, 0, 0)
    np.testing.assert_array_equal(shuffled[row[:16]], shuffled[row[16:]])


def test_bad_regimes_name_the_numbers():
    with pytest.raises(
        ValueError, match=r"label 1 \(of 0, 1, ..., by class\) has 1 training images, .* leave the class out"
    ):
        LabelsTimesImages(np.array([0, 0, 1, 2, 2]), 4, 2)
    with pytest.raises(ValueError, match="at least as many training images, got 8"):
        Iid(8, 32, 1)


def test_evaluation_minibatches_are_25_labels_times_2():
    labels = RNG.permutation(np.repeat(np.arange(100), 9))
    rows = paired_minibatches(labels, 25, 2)
    assert rows.shape == (16, 50)  # 4 pairs of each label, 400 pairs
    assert len(set(rows.reshape(-1))) == rows.size
    np.testing.assert_array_equal(labels[rows[:, :25]], labels[rows[:, 25:]])  # as in training: a label's images apart
    assert len(set(labels[rows[0]])) > 15  # pairs of a minibatch come from all over the labels
    with pytest.raises(ValueError, match="no minibatch of 25 labels x 2"):
        paired_minibatches(np.repeat(np.arange(10), 2), 25, 2)


def test_evaluation_minibatches_without_counterparts_have_every_label_once():
    labels = RNG.permutation(np.repeat(np.arange(60), RNG.integers(3, 9, 60)))
    rows = distinct_minibatches(labels, 50)
    assert rows.shape[1] == 50
    assert all(len(set(labels[row])) == 50 for row in rows)
    assert len(set(rows.reshape(-1))) == rows.size
    np.testing.assert_array_equal(rows, distinct_minibatches(labels, 50))
    whole = distinct_minibatches(np.tile(np.arange(1000), 50), 50)
    assert whole.size == 50_000  # of ImageNet's validation images every one
    with pytest.raises(ValueError, match="60 labels give no minibatch of 61 images with different labels"):
        distinct_minibatches(labels, 61)
