"""The report of a model: one HTML file with scores, their uncertainty, and where the model fails.

    html          elements of a page; text is escaped by construction
    charts        lines, bars and areas as SVG
    page          the page: template, tables, cards, gallery; page.html, page.css, page.js
    confusion     what is taken for what: matrix and pairs
    outlines      objects over a photograph as SVG: masks, boxes, names
    matching      which detection finds which object, and what kind of error each other one is
    pictures      bounded pictures inside the page
    bootstrap     intervals and paired differences by resampling of images
    segmentation  label PNGs: scores of each image, confused classes, examples
    detection     COCO JSON: matches, precision and recall, kinds of errors, calibration, examples
    compare       two models on the same images
    training      the record of a training as charts, and what lies in a run's folder

Nothing here imports torch or OpenMMLab.
"""
