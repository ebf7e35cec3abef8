"""Students and checkpoints: cutting, loading, classes, exported models."""
