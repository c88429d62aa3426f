"""Evaluation that needs files only: label PNGs for segmentation, COCO JSON for detection.

    segmentation  confusion matrix, IoU, accuracy and boundary IoU of folders of label PNGs
    pairs         which prediction belongs to which label, and what is wrong with the folders
    classes       class names and conventions of the datasets that we know by name
    boundary      the boundary region of label maps and masks (boundary IoU)
    coco          box, mask and boundary AP of COCO results
    coco_files    reading and checking COCO results and annotations
    report        tables, CSV and JSON
    plots         pictures of per-class IoU and of the confusion matrix

Nothing here imports torch; mmsegmentation is asked for class names only.
"""
