"""Expert Merging: each matrix of each task vector times a coefficient that makes the merged model answer as they do.

The coefficients are sigmoids, from the scale of task arithmetic. They minimise, on a few rows without labels, how far
the merged model's hidden states and answers are from those of each row's own fine-tune, and are pulled to where they
began. Embeddings, norms and vectors keep the scale, as in the authors' program. Their own start is 0.1; 0.4 is our
task arithmetic's.

Source: Expert Merging, arXiv 2509.25712, section 3; numbers the paper leaves open are those of the authors' program.
"""

from hf_merge.merging.methods import MergeMethod, Need
from hf_merge.merging.methods._alignment import ALIGNMENT, WITHIN
from hf_merge.merging.methods._coefficients import merge


METHOD = MergeMethod(
    name="expert_merging",
    merge=merge,
    hyperparameters=(*ALIGNMENT, WITHIN),
    source="https://arxiv.org/abs/2509.25712",
    summary="Task vectors times coefficients per matrix, fitted to the fine-tunes' own answers and hidden states.",
    shaped=True,
    needs=Need.ALIGNED_COEFFICIENTS,
)
