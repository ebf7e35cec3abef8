"""Extractive question answering: SQuAD and files of its kind."""
