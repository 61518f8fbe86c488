"""How the files of a run folder are read, by training and by reports; without torch, so that it is quick."""
