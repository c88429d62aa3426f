"""What a model looks at: the attention of each mechanism in its own terms, as arrays and figures.

    from visattn_dense.explain import explain
    found = explain(model, image, point=(120, 80))
    found.figure().savefig('attention.png')

rows      attention_rows: exact rows of the attention matrix, a function for each class of attention
looks     a look: what one attention of a model weighs from one point
looking   explain: the looks of a model; rollout: a token through all blocks of T2T-ViT
maps      effective receptive fields, and features as colours
changes   which layers differ between two checkpoints
figures   the figures
watching  one forward of a model with hooks that are gone afterwards
subject   a backbone by its name, and an image prepared for it

`tools/explain.py` is the command; docs/explain.md explains it.
"""
from .changes import weight_changes
from .looking import Explanation, explain, rollout
from .looks import Look, half_area
from .maps import feature_colours, receptive_fields
from .rows import Routing, Rows, attention_rows, find_attentions

__all__ = ['Explanation', 'Look', 'Routing', 'Rows', 'attention_rows', 'explain',
           'feature_colours', 'find_attentions', 'half_area', 'receptive_fields', 'rollout',
           'weight_changes']
