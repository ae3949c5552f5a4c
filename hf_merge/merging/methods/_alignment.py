"""The settings of Expert Merging, which its two methods share; `hf_merge/modeling/fitting.py` does the fitting."""

from dataclasses import replace

from hf_merge.merging.methods import ROWS
from hf_merge.merging.settings import Hyperparameter


ALIGNMENT = (
    Hyperparameter("scale", 0.4, low=0.01, high=0.99, help="What every coefficient starts from, and is pulled to."),
    replace(ROWS, default=5),
    Hyperparameter("epochs", 1, low=1, high=10_000, whole=True, help="How many times the rows are gone through."),
    Hyperparameter(
        "accumulate", 8, low=1, high=10_000, whole=True, help="How many rows, task by task, a change looks at."
    ),
    Hyperparameter("rate", 0.5, low=0.0, high=10.0, help="AdamW's learning rate, on the coefficients' logits."),
    Hyperparameter("hidden", 1.0, low=0.0, high=1e6, help="What the loss of the hidden states is multiplied by."),
    Hyperparameter("logits", 1.0, low=0.0, high=1e6, help="What the loss of the answers is multiplied by."),
    Hyperparameter("temperature", 1.0, low=0.01, high=100.0, help="What logits are divided by before they compare."),
    Hyperparameter("pull", 0.8, low=0.0, high=1e6, help="What the mean distance from `scale` is multiplied by."),
)
WITHIN = Hyperparameter(
    "within",
    "",
    pattern=r"c\d{4,}-[0-9a-f]{6}",
    optional=True,
    help="Set by hf-merge refine: the configuration whose groups' coefficients were fitted together.",
)
