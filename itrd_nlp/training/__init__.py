"""The Trainer: arguments, checks, callbacks, checkpoints, the Hub."""
