"""Reports of training runs: what the demo and `train` show of the same things, as HTML and as a picture."""
