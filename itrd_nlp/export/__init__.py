"""Deployment: ONNX, int8, latency, a script that needs neither torch nor transformers."""
