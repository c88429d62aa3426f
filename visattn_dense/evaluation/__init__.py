"""Evaluation from files alone: label PNGs for segmentation, COCO JSON for detection.

    segmentation   confusion matrix, IoU, accuracy and boundary IoU of folders of label PNGs
    pairs          pairs predictions with labels, and reports faults of the two folders
    dataset_files  class names and file conventions of some datasets
    boundary       the boundary region of label maps and masks (boundary IoU)
    colours        masks that hold colours to label maps
    coco           box, mask and boundary AP of COCO results
    coco_files     reads and checks COCO results and annotations
    coco_format    finds every fault of COCO annotations, boxes and masks
    report         tables, CSV and JSON
    plots          pictures of per-class IoU and of the confusion matrix

Nothing here imports torch. mmsegmentation is imported for class names only.
"""
