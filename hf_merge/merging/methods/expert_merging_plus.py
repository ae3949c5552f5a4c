"""Expert Merging++: where Expert Merging's coefficients moved most weight, a matrix gets several, chunk by chunk.

After a first fit the importance of a matrix is the sum over tasks of its coefficient times the absolute sum of its
task vector. Of `budget` times as many coefficients as there are matrices, each gets the share that its importance to
the power of `sharpness` is of all, rounded down; one that gets none keeps the scale. The flattened matrix is cut into
so many chunks, and the fit is done anew.

Source: Expert Merging++, arXiv 2509.25712, section 3.3; the authors' program takes the chunks as given.
"""

from hf_merge.merging.methods import MergeMethod, Need
from hf_merge.merging.methods._alignment import ALIGNMENT, WITHIN
from hf_merge.merging.methods._coefficients import merge
from hf_merge.merging.settings import Hyperparameter


METHOD = MergeMethod(
    name="expert_merging_plus",
    merge=merge,
    hyperparameters=(
        *ALIGNMENT,
        Hyperparameter("budget", 1.0, low=0.0, high=100.0, help="How many coefficients there are, per matrix."),
        Hyperparameter("sharpness", 1.0, low=0.0, high=10.0, help="How unevenly they are shared out; 0 is evenly."),
        WITHIN,
    ),
    source="https://arxiv.org/abs/2509.25712",
    summary="Expert Merging with more coefficients for the matrices that matter more.",
    shaped=True,
    needs=Need.ALIGNED_CHUNKS,
)
