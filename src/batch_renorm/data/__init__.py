"""Images and how minibatches are drawn: results depend only on the arguments, never on hidden state."""
