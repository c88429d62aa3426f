"""What a prediction goes through, whatever computes it: sources, threads, results, files.

NumPy and Pillow are enough for this room. Neither torch nor OpenMMLab is imported here.

sources  pictures from paths, addresses, bytes, arrays, tensors, folders, videos, cameras
video    frames out of a video or a camera, and into a video
stream   reads, computes and hands over at the same time, with bounded memory
results  the typed results, and their files
masks    masks as COCO's run lengths and as polygons
records  the results of many pictures in one JSON file
tiles    windows over a picture, blended without a seam
merge    objects of overlapping windows become objects of the picture
rasters  windows out of TIFF files, label files, GeoJSON
maps     a TIFF file of any size to labels or objects
card     what an exported file says about itself
fitting  a picture as an exported file takes it
exported an exported model in onnxruntime; exported_detector: its boxes and masks
resizing resizing as OpenCV and torch do it
"""
