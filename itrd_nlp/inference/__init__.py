"""Predictions of saved models on texts and images: what ``itrd predict`` prints."""
