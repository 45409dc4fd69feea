"""What every room may use: files and errors, models, data sets, the Hub, the directory of a run."""
