"""mmcv's compiled operators, answered by torchvision's kernels or by plain torch.

One file per family of operators. Each function has the name and the calling convention that
`mmcv/ops/*.py` of mmcv 2.1.0 uses: arguments by name, results written into the buffers that the
caller passes. `visattn_dense.openmmlab.compat.mmcv_ext` collects them.
"""
