"""The embedded model: a small GPT-2 trained by this project, shipped with it (`--model demo`).

The folder is an ordinary transformers checkpoint (config, tokenizer, fp32 safetensors). `train.py` made
it and makes it again; `README.md` is its card.
"""

from pathlib import Path

DEMO_FOLDER = Path(__file__).parent / "checkpoint"
