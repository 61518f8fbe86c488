"""Reading the files of a run folder, for training and reports; without torch, so that it is quick."""
