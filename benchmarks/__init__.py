"""Speed and memory of probekit against peers and against hand-written PyTorch: `python -m benchmarks`.

Sides that do the same work take turns in one run, and what is reported is their ratio, pair by pair: absolute times are
those of one machine, ratios travel. No test asserts a time.
"""
