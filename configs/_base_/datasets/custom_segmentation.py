"""Images and masks of one's own: images/{train,val} and masks/{train,val} below the data root.

A config adds data_root, the class names and a pipeline to each data set, and the batch size.
"""
_base_ = './segmentation.py'
train_dataloader = dict(dataset=dict(
    type='FolderSegDataset',
    data_prefix=dict(img_path='images/train', seg_map_path='masks/train')))
val_dataloader = dict(num_workers=2, dataset=dict(
    type='FolderSegDataset',
    data_prefix=dict(img_path='images/val', seg_map_path='masks/val')))
test_dataloader = val_dataloader
