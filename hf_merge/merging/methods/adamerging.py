"""AdaMerging, layer-wise: each tensor of each task vector times a coefficient that makes the answers confident.

The coefficients minimise the mean entropy of the merged model's answers on rows without labels: Adam from 0.3, kept in
[0, 1]; the paper's own numbers are 500 steps of 16 rows a task. The authors adapt on the test rows; here the rows are
of those that train the router, so that test rows stay unseen. A task with a single number as its answer has no
entropy: it takes part with its task vector alone. With `scale` kept everywhere it is task arithmetic.

Source: AdaMerging, arXiv 2310.02575.
"""

from hf_merge.merging.methods import ROWS, MergeMethod, Need
from hf_merge.merging.methods._coefficients import merge
from hf_merge.merging.settings import Hyperparameter


METHOD = MergeMethod(
    name="adamerging",
    merge=merge,
    hyperparameters=(
        Hyperparameter("scale", 0.3, low=0.0, high=1.0, help="What every coefficient starts from."),
        ROWS,
        Hyperparameter(
            "steps", 500, low=1, high=100_000, whole=True, help="How many times the coefficients are changed."
        ),
        Hyperparameter(
            "batch",
            16,
            low=1,
            high=4096,
            whole=True,
            help="How many rows of each task, of like length, a change sees at most.",
        ),
        Hyperparameter("rate", 1e-3, low=0.0, high=1.0, help="Adam's learning rate."),
    ),
    source="https://arxiv.org/abs/2310.02575",
    summary="Task vectors times coefficients per tensor, fitted so that answers have little entropy.",
    shaped=True,
    needs=Need.CONFIDENT_COEFFICIENTS,
)
