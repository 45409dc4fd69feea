"""What a training run is made of: its hyperparameters, its sampler inside TRL, what happens while it trains."""
