"""Images and how they are drawn: everything here is a function of its arguments, with no state."""
