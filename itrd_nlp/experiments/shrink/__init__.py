"""The search for the smallest student that keeps what was asked: candidates, rounds of training, choice."""
