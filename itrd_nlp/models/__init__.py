"""Models: students cut from encoders, checkpoints, classes of heads, exported models."""
