"""Images and how minibatches are drawn: an image and a minibatch depend on their arguments alone."""
