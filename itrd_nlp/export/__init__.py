"""Deployment: ONNX, int8, latency, and a script that needs neither torch nor transformers."""
