"""A backbone of each family, as small as it can be with all parts of the family."""
from visattn_dense.backbones import BiFormer, CSWin, EfficientViT, FLattenCSWin, T2TViT


def cross_arch(**more) -> dict:
    return dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(2, 2, 4, 4),
                stripe_widths=(1, 2, 3, 3), **more)


BACKBONES = {
    'CSWin': lambda **options: CSWin(cross_arch(), **options),
    'FLattenCSWin': lambda **options: FLattenCSWin(cross_arch(), img_size=64, **options),
    'BiFormer': lambda **options: BiFormer(
        dict(embed_dims=(16, 24, 32, 48), depths=(1, 1, 2, 1), mlp_ratio=3., overlapping=True),
        n_win=3, head_dim=8, topks=(1, 2, 4, -2), **options),
    'EfficientViT': lambda **options: EfficientViT(dict(
        stem_dim=8, dims=(8, 16, 24, 40), depths=(1, 1, 2, 2), head_dim=8, stem='separable',
        stages=('mbconv', 'fused', 'attention', 'attention'), strided_ratios=(4, 4, 4, 4),
        expand_ratios=(4, 4, 4, 4), act='hardswish', norm_eps=1e-5), **options),
    'T2TViT': lambda **options: T2TViT(
        dict(embed_dim=32, depth=4, num_heads=2, mlp_ratio=2., tokens='performer', se=False),
        img_size=64, **options),
    'T2TViT, transformer tokens': lambda **options: T2TViT(
        dict(embed_dim=32, depth=4, num_heads=2, mlp_ratio=2., tokens='transformer', se=True),
        img_size=64, **options),
}
