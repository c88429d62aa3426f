"""What every segmentor shares: the normalisation of images, and whole images in testing."""
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(512, 512),
        pad_val=0,
        seg_pad_val=255),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
