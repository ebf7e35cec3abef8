"""Image classification: data, transforms and metric."""
