"""Images and masks of one's own: images/{train,val} and masks/{train,val} below the data root.

Scales are ADE20K's. A config adds data_root and the class names to each data set.
"""
_base_ = './segmentation.py'
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        type='FolderSegDataset',
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train')))
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        type='FolderSegDataset',
        data_prefix=dict(img_path='images/val', seg_map_path='masks/val')))
test_dataloader = val_dataloader
