"""The demos: rendered street scenes, a small model trained on them, and pictures of its output.

    python -m demo segmentation     see docs/demo.md
    python -m demo detection        see docs/detection.md
    python -m demo.scenes ROOT      the scenes alone, see docs/scenes.md

`runner` has the steps of every demo; `segmentation` and `detection` have what only one demo needs.
"""
# Mends OpenMMLab before anything here imports it, and registers the backbones.
import visattn_dense  # noqa: F401
