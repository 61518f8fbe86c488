"""What TensorFlow's own operations give, for the tests of the recipe: makes tensorflow.json.

    pip install tensorflow-cpu && python tests/data/tensorflow_numbers.py

Crops are those of the sampler's kernel with a seed each; colours go through tf.image with given amounts, in the two
orders of Inception-v3's recipe.
"""

import json
from pathlib import Path

import numpy as np

SIZES = [(500, 375), (375, 500), (400, 100), (100, 400), (2000, 100), (37, 53), (299, 299), (8, 5)]
CROPS = 60  # of each size


def crops(tf):
    """Rows of width, height, seed, left, top, right, bottom."""
    rows = []
    for width, height in SIZES:
        for _ in range(CROPS):
            seed = 1000 + len(rows)  # another operation each: an operation's second call goes on in its stream
            begin, size, _ = tf.raw_ops.SampleDistortedBoundingBoxV2(
                image_size=[height, width, 3], bounding_boxes=np.zeros((1, 0, 4), np.float32), min_object_covered=0.1,
                seed=7, seed2=seed, aspect_ratio_range=[0.75, 1.33], area_range=[0.05, 1.0], max_attempts=100,
                use_image_if_no_bounding_boxes=True,
            )  # fmt: skip
            (top, left, _), (h, w, _) = begin.numpy().tolist(), size.numpy().tolist()
            h, w = (height if h < 0 else h), (width if w < 0 else w)
            rows.append([width, height, seed, left, top, left + w, top + h])
    return rows


def colours(tf):
    """Images of 4 x 4 pixels, the draws of distort(), and the results."""
    rng = np.random.default_rng(0)
    images, draws = rng.random((12, 4, 4, 3)).astype(np.float32), rng.random((12, 5)).astype(np.float32)
    images[:3] = np.round(images[:3])  # pure colours, black and white
    images[3, ..., :] = images[3, ..., :1]  # greys
    draws[:, 0] = np.arange(12) % 2 * 0.5 + 0.25  # both orders
    results = []
    for image, draw in zip(images, draws, strict=True):
        low, high = np.float32([-32 / 255, 0.5, -0.2, 0.5]), np.float32([32 / 255, 1.5, 0.2, 1.5])
        brightness, saturation, hue, contrast = (low + (high - low) * draw[1:]).tolist()
        image = tf.image.adjust_brightness(image, brightness)
        if draw[0] < 0.5:
            image = tf.image.adjust_saturation(image, saturation)
            image = tf.image.adjust_hue(image, hue)
            image = tf.image.adjust_contrast(image, contrast)
        else:
            image = tf.image.adjust_contrast(image, contrast)
            image = tf.image.adjust_saturation(image, saturation)
            image = tf.image.adjust_hue(image, hue)
        results.append(tf.clip_by_value(image, 0.0, 1.0).numpy())
    return {name: np.round(value, 6).tolist() for name, value in
            {"images": images, "draws": draws, "results": np.stack(results)}.items()}  # fmt: skip


if __name__ == "__main__":
    import tensorflow as tf

    found = {"tensorflow": tf.__version__, "crops": crops(tf), "colours": colours(tf)}
    Path(__file__).with_name("tensorflow.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")
