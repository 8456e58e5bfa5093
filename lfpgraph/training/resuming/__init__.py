"""What lets a run go on where another one stopped: values in a file, whether they fit, and a lock on the folder."""
